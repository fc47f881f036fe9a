package oidc

import (
	"cmp"
	"context"
	"strings"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/fault"
	"teleport/internal/join/jwt"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

// The claims and variables are those of the platforms' own documents: GitHub "OpenID
// Connect reference", GitLab "OpenID Connect authentication using ID tokens", CircleCI
// "Using OpenID Connect tokens in jobs", Spacelift "OpenID Connect", HashiCorp
// "Workload identity tokens", Atlassian "Integrate Pipelines with resource servers using
// OIDC", Microsoft "Oidctoken - Create", env0 "OIDC integrations".

func presets() []preset {
	return []preset{
		generic(), github(), gitlab(), circleci(), spacelift(), terraformCloud(), bitbucket(), azureDevops(), env0(),
	}
}

func generic() preset {
	return preset{
		name: types.JoinMethodOIDC,
		source: func(s *typesv1.TokenSpec) jwt.Source {
			return jwt.Source{Issuer: s.GetOidc().GetIssuer(), Private: true, CA: s.GetOidc().GetCa()}
		},
		static: func(s *typesv1.TokenSpec) string { return s.GetOidc().GetStaticJwks() },
		audience: func(cluster string, s *typesv1.TokenSpec) string {
			return cmp.Or(s.GetOidc().GetAudience(), cluster)
		},
		// What the rules ask for is what they compare.
		more: func(c jwt.Claims, s *typesv1.TokenSpec, to map[string][]string) error {
			for _, rule := range s.GetOidc().GetAllow() {
				for _, fields := range []map[string]*typesv1.Strings{rule.GetMustMatchFields(), rule.GetGlobFields()} {
					for path := range fields {
						delete(to, path)
						add(to, path, c.Dotted(path))
					}
				}
			}
			return nil
		},
		token: genericToken,
	}
}

func github() preset {
	return preset{
		name: types.JoinMethodGitHub,
		source: func(s *typesv1.TokenSpec) jwt.Source {
			g := s.GetGithub()
			switch {
			case g.GetEnterpriseServerHost() != "":
				return jwt.Source{Issuer: "https://" + g.GetEnterpriseServerHost() + "/_services/token", Private: true}
			case g.GetEnterpriseSlug() != "":
				return jwt.Source{Issuer: "https://token.actions.githubusercontent.com/" + g.GetEnterpriseSlug()}
			}
			return jwt.Source{Issuer: "https://token.actions.githubusercontent.com"}
		},
		static: func(s *typesv1.TokenSpec) string { return s.GetGithub().GetStaticJwks() },
		claims: names("repository", "repository_owner", "repository_id", "repository_owner_id", "workflow", "environment", "actor", "ref", "ref_type",
			"actor_id", "event_name", "job_workflow_ref", "run_id", "run_attempt", "runner_environment", "sha"),
		token: githubToken,
	}
}

func gitlab() preset {
	return preset{
		name: types.JoinMethodGitLab,
		source: func(s *typesv1.TokenSpec) jwt.Source {
			domain := s.GetGitlab().GetDomain()
			return jwt.Source{Issuer: "https://" + cmp.Or(domain, "gitlab.com"), Private: domain != ""}
		},
		static:   func(s *typesv1.TokenSpec) string { return s.GetGitlab().GetStaticJwks() },
		audience: func(cluster string, _ *typesv1.TokenSpec) string { return cluster },
		claims: names("ref", "ref_type", "ref_protected", "namespace_path", "project_path", "pipeline_source", "environment", "environment_protected",
			"user_login", "user_id", "user_email", "ci_config_sha", "ci_config_ref_uri", "deployment_tier", "project_visibility",
			"namespace_id", "project_id", "pipeline_id", "job_id", "runner_environment", "sha"),
		token: func(_ context.Context, m method.Machine) (string, error) {
			name := cmp.Or(m.Settings["gitlab.token_env_var_name"], "TBOT_GITLAB_JWT")
			return fromEnv(m, "the job asks for it with id_tokens: {"+name+": {aud: "+m.Cluster+"}} in .gitlab-ci.yml; another name is set as teleport.join_params.gitlab.token_env_var_name", name)
		},
	}
}

func circleci() preset {
	organization := func(s *typesv1.TokenSpec) string { return s.GetCircleci().GetOrganizationId() }
	return preset{
		name: types.JoinMethodCircleCI,
		source: func(s *typesv1.TokenSpec) jwt.Source {
			return jwt.Source{Issuer: "https://oidc.circleci.com/org/" + organization(s)}
		},
		// The tokens of a job are for its organisation.
		audience: func(_ string, s *typesv1.TokenSpec) string { return organization(s) },
		claims: map[string][]string{
			"project_id": {"oidc.circleci.com/project-id"}, "context_id": {"oidc.circleci.com/context-ids"},
			"vcs_origin": {"oidc.circleci.com/vcs-origin"}, "vcs_ref": {"oidc.circleci.com/vcs-ref"}, "ssh_rerun": {"oidc.circleci.com/ssh-rerun"},
		},
		token: func(_ context.Context, m method.Machine) (string, error) {
			return fromEnv(m, "CircleCI sets it in every job", "CIRCLE_OIDC_TOKEN_V2", "CIRCLE_OIDC_TOKEN")
		},
	}
}

func spacelift() preset {
	return preset{
		name: types.JoinMethodSpacelift,
		source: func(s *typesv1.TokenSpec) jwt.Source {
			return jwt.Source{Issuer: "https://" + s.GetSpacelift().GetHostname(), Private: true}
		},
		// The tokens of an account are for its own host name.
		audience: func(_ string, s *typesv1.TokenSpec) string { return s.GetSpacelift().GetHostname() },
		claims: map[string][]string{
			"space_id": {"spaceId"}, "caller_id": {"callerId"}, "caller_type": {"callerType"}, "scope": {"scope"},
			"run_id": {"runId"}, "run_type": {"runType"},
		},
		token: func(_ context.Context, m method.Machine) (string, error) {
			return fromEnv(m, "Spacelift sets it in every run of a paid account", "SPACELIFT_OIDC_TOKEN")
		},
	}
}

func terraformCloud() preset {
	return preset{
		name: types.JoinMethodTerraformCloud,
		source: func(s *typesv1.TokenSpec) jwt.Source {
			host := s.GetTerraformCloud().GetHostname()
			return jwt.Source{Issuer: "https://" + cmp.Or(host, "app.terraform.io"), Private: host != ""}
		},
		audience: func(cluster string, s *typesv1.TokenSpec) string {
			return cmp.Or(s.GetTerraformCloud().GetAudience(), cluster)
		},
		claims: map[string][]string{
			"organization_id": {"terraform_organization_id"}, "organization_name": {"terraform_organization_name"},
			"project_id": {"terraform_project_id"}, "project_name": {"terraform_project_name"},
			"workspace_id": {"terraform_workspace_id"}, "workspace_name": {"terraform_workspace_name"},
			"run_phase": {"terraform_run_phase"}, "run_id": {"terraform_run_id"},
		},
		token: func(_ context.Context, m method.Machine) (string, error) {
			name, ask := "TFC_WORKLOAD_IDENTITY_TOKEN", "TFC_WORKLOAD_IDENTITY_AUDIENCE"
			if tag := m.Settings["terraform_cloud.audience_tag"]; tag != "" {
				name, ask = name+"_"+tag, ask+"_"+tag
			}
			return fromEnv(m, "the workspace asks for it with the environment variable "+ask+" = "+m.Cluster+", or the audience of the token if that has one", name)
		},
	}
}

func bitbucket() preset {
	return preset{
		name: types.JoinMethodBitbucket,
		source: func(s *typesv1.TokenSpec) jwt.Source {
			return jwt.Source{Issuer: s.GetBitbucket().GetIdentityProviderUrl()}
		},
		audience: func(_ string, s *typesv1.TokenSpec) string { return s.GetBitbucket().GetAudience() },
		claims: map[string][]string{
			"workspace_uuid": {"workspaceUuid"}, "repository_uuid": {"repositoryUuid"}, "deployment_environment_uuid": {"deploymentEnvironmentUuid"},
			"branch_name": {"branchName"}, "pipeline_uuid": {"pipelineUuid"}, "step_uuid": {"stepUuid"},
		},
		token: func(_ context.Context, m method.Machine) (string, error) {
			return fromEnv(m, "the step asks for it with oidc: true in bitbucket-pipelines.yml", "BITBUCKET_STEP_OIDC_TOKEN")
		},
	}
}

func azureDevops() preset {
	return preset{
		name: types.JoinMethodAzureDevops,
		source: func(s *typesv1.TokenSpec) jwt.Source {
			return jwt.Source{Issuer: "https://vstoken.dev.azure.com/" + s.GetAzureDevops().GetOrganizationId()}
		},
		// The platform has this one audience for everybody.
		audience: func(string, *typesv1.TokenSpec) string { return "api://AzureADTokenExchange" },
		claims: map[string][]string{
			"organization_id": {"org_id"}, "project_id": {"prj_id"}, "definition_id": {"def_id"}, "repository_id": {"rpo_id"},
			"repository_uri": {"rpo_uri"}, "repository_version": {"rpo_ver"}, "repository_ref": {"rpo_ref"}, "run_id": {"run_id"},
		},
		more: func(c jwt.Claims, s *typesv1.TokenSpec, to map[string][]string) error {
			if want, got := s.GetAzureDevops().GetOrganizationId(), c.Text("org_id"); got != want {
				return notThis("the token is of organisation %.64q: expected %q", got, want)
			}
			// p://ORGANIZATION/PROJECT/PIPELINE; that of a service connection is sc://... and
			// names no pipeline.
			if rest, ok := strings.CutPrefix(c.Subject, "p://"); ok {
				if parts := strings.Split(rest, "/"); len(parts) == 3 {
					add(to, "project_name", parts[1:2])
					add(to, "pipeline_name", parts[2:])
				}
			}
			return nil
		},
		token: azureDevopsToken,
	}
}

func env0() preset {
	return preset{
		name:     types.JoinMethodEnv0,
		source:   func(*typesv1.TokenSpec) jwt.Source { return jwt.Source{Issuer: "https://login.app.env0.com/"} },
		audience: func(string, *typesv1.TokenSpec) string { return "https://prod.env0.com" },
		claims: map[string][]string{
			"organization_id": {"organizationId"}, "project_id": {"projectId"}, "project_name": {"projectName"},
			"template_id": {"templateId"}, "template_name": {"templateName"}, "environment_id": {"environmentId"}, "environment_name": {"environmentName"},
			"workspace_name": {"workspaceName"}, "deployment_type": {"deploymentType"}, "deployer_email": {"deployerEmail"}, "env0_tag": {"env0Tag"},
			"deployment_log_id": {"deploymentLogId"},
		},
		// The same issuer signs the tokens of API keys.
		more: func(c jwt.Claims, _ *typesv1.TokenSpec, _ map[string][]string) error {
			if got := c.Text("apiKeyType"); got != "oidc" {
				return notThis("the token is not that of a deployment: expected apiKeyType \"oidc\", got %.64q", got)
			}
			return nil
		},
		token: func(_ context.Context, m method.Machine) (string, error) {
			return fromEnv(m, "an administrator of the organisation turns it on under Policies", "ENV0_OIDC_TOKEN")
		},
	}
}

func notThis(format string, args ...any) error {
	return fault.New(fault.ErrDenied, format, args...).WithCode(method.CodeProofMachine)
}
