package types

func boundKeypairMethod() JoinMethod {
	return JoinMethod{Name: JoinMethodBoundKeypair, Sections: []string{"bound_keypair"}}
}
