package method

// Reason codes of refusals that methods share: docs/reference/join-errors.md has a
// section for each.
const (
	// CodeProofMalformed: the proof is not what the method expects.
	CodeProofMalformed = "proof_malformed"
	// CodeProofSignature: the signature or its issuer is not good.
	CodeProofSignature = "proof_signature"
	// CodeProofExpired: the proof was good once.
	CodeProofExpired = "proof_expired"
	// CodeProofNotYetValid: the proof is from the future.
	CodeProofNotYetValid = "proof_not_yet_valid"
	// CodeProofLifetime: the proof is good for longer than the method accepts.
	CodeProofLifetime = "proof_lifetime"
	// CodeProofReplayed: the proof was used before.
	CodeProofReplayed = "proof_replayed"
	// CodeProofAudience: the proof was made for somebody else.
	CodeProofAudience = "proof_audience"
	// CodeProofIssuer: the proof is of an issuer that the token does not name.
	CodeProofIssuer = "proof_issuer"
	// CodeProofAttempt: the proof was not made for this attempt.
	CodeProofAttempt = "proof_attempt"
	// CodeProofMachine: the proof does not say which machine, or its parts are of two.
	CodeProofMachine = "proof_machine"
	// CodeRuleMismatch: no allow rule of the token matches.
	CodeRuleMismatch = "rule_mismatch"
	// CodeCloudUnreachable: Auth could not ask the platform.
	CodeCloudUnreachable = "cloud_unreachable"
	// CodeCloudRefused: the platform does not vouch for the machine.
	CodeCloudRefused = "cloud_refused"
	// CodeCredentials: the machine has nothing to prove itself with.
	CodeCredentials = "credentials_missing"
	// CodeMetadata: the machine's metadata service does not answer as it should.
	CodeMetadata = "metadata_unreachable"
	// CodeStateForked: two machines use the key that is bound to one.
	CodeStateForked = "state_forked"
	// CodeRecoveryLimit: the bound machine joined without an identity too often.
	CodeRecoveryLimit = "recovery_limit"
	// CodeRegistrationClosed: the time to register with the token is over.
	CodeRegistrationClosed = "registration_closed"
)
