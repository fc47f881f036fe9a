package oidc_test

import (
	typesv1 "teleport/api/types/v1"
	"teleport/internal/join/method"
)

const (
	uuid1 = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
	uuid2 = "9a0c0305-4f89-41d3-9a0c-3f2504e0e82c"
	uuid3 = "00000000-1111-2222-3333-444444444444"
)

func texts(v ...string) *typesv1.Strings { return &typesv1.Strings{Values: v} }

// platforms are the tokens of the platforms as their own documents show them: the
// claims, their forms (numbers that are texts, truth values that are texts, lists) and
// the audience.
func platforms() []platform {
	return []platform{
		genericPlatform(), githubPlatform(), gitlabPlatform(), circleciPlatform(), spaceliftPlatform(), terraformPlatform(), bitbucketPlatform(),
		azureDevopsPlatform(), env0Platform(),
	}
}

func genericPlatform() platform {
	rule := func(change func(*typesv1.OIDCRule)) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) { change(s.GetOidc().GetAllow()[0]) }
	}
	return platform{
		name: "oidc", issuer: "https://id.example.com/realms/ci", aud: []string{"x", suiteCluster}, env: "MY_TOKEN", settings: "oidc.env=MY_TOKEN",
		claims: map[string]any{
			"sub": "job:17", "jti": "j1", "runner": map[string]any{"trusted": true, "tier": 3}, "groups": []string{"deploy", "web"},
			"https://id.example.com/org": "acme", "ref": "refs/heads/release/1.2",
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Oidc: &typesv1.OIDCJoin{
				Issuer: "https://id.example.com/realms/ci",
				Allow: []*typesv1.OIDCRule{{
					MustMatchFields: map[string]*typesv1.Strings{
						"sub": texts("job:16", "job:17"), "runner.trusted": texts("true"), "runner.tier": texts("3"), "groups": texts("deploy"),
						"https://id.example.com/org": texts("acme"),
					},
					GlobFields: map[string]*typesv1.Strings{"ref": texts("refs/heads/release/*")},
				}},
			}}
		},
		wrong:  rule(func(r *typesv1.OIDCRule) { r.MustMatchFields["https://id.example.com/org"] = texts("acm") }),
		proves: map[string]string{"sub": "job:17", "runner.trusted": "true", "runner.tier": "3", "https://id.example.com/org": "acme"},
		bad: []bad{
			{name: "number_is_other", rule: rule(func(r *typesv1.OIDCRule) { r.MustMatchFields["runner.tier"] = texts("3.0") }), code: method.CodeRuleMismatch},
			{name: "truth_is_false", claims: map[string]any{"runner": map[string]any{"trusted": false, "tier": 3}}, code: method.CodeRuleMismatch},
			{name: "not_in_list", claims: map[string]any{"groups": []string{"deployers"}}, code: method.CodeRuleMismatch},
			{name: "claim_missing", claims: map[string]any{"ref": nil}, code: method.CodeRuleMismatch},
			{name: "claim_null", rule: rule(func(r *typesv1.OIDCRule) { r.MustMatchFields["x"] = texts("null") }), code: method.CodeRuleMismatch},
			{name: "object_for_text", claims: map[string]any{"sub": map[string]any{"job:17": 1}}, code: method.CodeProofMalformed},
			{name: "glob_over_slash", claims: map[string]any{"ref": "refs/heads/release/1.2/evil"}, code: method.CodeRuleMismatch},
			{name: "literal_star", rule: rule(func(r *typesv1.OIDCRule) { r.MustMatchFields["sub"] = texts("job:*") }), code: method.CodeRuleMismatch},
			{name: "other_case", claims: map[string]any{"https://id.example.com/org": "ACME"}, code: method.CodeRuleMismatch},
			{name: "flat_name_for_path", claims: map[string]any{"runner": nil, "runner.trusted": "yes", "runner.tier": "3"}, code: method.CodeRuleMismatch},
			{name: "audience_of_token", rule: func(s *typesv1.TokenSpec) { s.GetOidc().Audience = "another" }, code: method.CodeProofAudience},
		},
	}
}

func githubPlatform() platform {
	rule := func(change func(*typesv1.GitHubRule)) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) { change(s.GetGithub().GetAllow()[0]) }
	}
	return platform{
		name: "github", issuer: "https://token.actions.githubusercontent.com",
		claims: map[string]any{
			"jti": "example-id", "sub": "repo:octo-org/octo-repo:environment:prod", "environment": "prod", "ref": "refs/heads/main", "sha": "example-sha",
			"repository": "octo-org/octo-repo", "repository_owner": "octo-org", "actor_id": "12", "repository_visibility": "private", "repository_id": "74",
			"repository_owner_id": "65", "run_id": "example-run-id", "run_number": "10", "run_attempt": "2", "runner_environment": "github-hosted",
			"actor": "octocat", "workflow": "example-workflow", "head_ref": "", "base_ref": "", "event_name": "workflow_dispatch", "ref_type": "branch",
			"job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Github: &typesv1.GitHubJoin{Allow: []*typesv1.GitHubRule{{
				Repository: "octo-org/octo-repo", RepositoryOwner: "octo-org", RepositoryId: "74", RepositoryOwnerId: "65",
				Sub: "repo:octo-org/octo-repo:environment:prod", Workflow: "example-workflow", Environment: "prod", Actor: "octocat", Ref: "refs/heads/main", RefType: "branch",
			}}}}
		},
		wrong:  rule(func(r *typesv1.GitHubRule) { r.Repository = "octo-org/octo-repo2" }),
		proves: map[string]string{"repository": "octo-org/octo-repo", "repository_id": "74", "event_name": "workflow_dispatch"},
		bad: []bad{
			{name: "pull_request", claims: map[string]any{"ref": "refs/pull/7/merge", "event_name": "pull_request", "sub": "repo:octo-org/octo-repo:pull_request"}, rule: rule(func(r *typesv1.GitHubRule) { r.Sub = "" }), code: method.CodeRuleMismatch},
			{name: "renamed_and_taken", claims: map[string]any{"repository_id": "75"}, code: method.CodeRuleMismatch},
			{name: "owner_registered_anew", claims: map[string]any{"repository_owner_id": "66"}, code: method.CodeRuleMismatch},
			{name: "other_case", claims: map[string]any{"repository": "Octo-Org/octo-repo"}, code: method.CodeRuleMismatch},
			{name: "no_environment", claims: map[string]any{"environment": nil}, code: method.CodeRuleMismatch},
			{name: "tag_named_like_the_branch", claims: map[string]any{"ref_type": "tag"}, code: method.CodeRuleMismatch},
			{name: "constant_audience", claims: map[string]any{"aud": suiteCluster}, code: method.CodeProofAudience},
			{name: "default_audience", claims: map[string]any{"aud": "https://github.com/octo-org"}, code: method.CodeProofAudience},
			{name: "enterprise_of_token", rule: func(s *typesv1.TokenSpec) { s.GetGithub().EnterpriseSlug = "acme" }, code: method.CodeCloudUnreachable},
		},
	}
}

func gitlabPlatform() platform {
	rule := func(change func(*typesv1.GitLabRule)) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) { change(s.GetGitlab().GetAllow()[0]) }
	}
	yes, no := true, false
	return platform{
		name: "gitlab", issuer: "https://gitlab.com", aud: suiteCluster, env: "TBOT_GITLAB_JWT",
		claims: map[string]any{
			"namespace_id": "72", "namespace_path": "my-group/sub", "project_id": "20", "project_path": "my-group/sub/my-project", "user_id": "1",
			"user_login": "sample-user", "user_email": "sample-user@example.com", "user_identities": []any{map[string]any{"provider": "github", "extern_uid": "2435"}},
			"pipeline_id": "574", "pipeline_source": "push", "job_id": "302", "ref": "feature-branch-1", "ref_type": "branch", "ref_path": "refs/heads/feature-branch-1",
			"ref_protected": "true", "groups_direct": []string{"mygroup/mysubgroup"}, "environment": "test-environment2", "environment_protected": "false",
			"deployment_tier": "testing", "environment_action": "start", "runner_id": 1, "runner_environment": "self-hosted",
			"sha": "714a629c0b401fdce83e847fc9589983fc6f46bc", "project_visibility": "public", "ci_config_ref_uri": "gitlab.example.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main",
			"ci_config_sha": "714a629c0b401fdce83e847fc9589983fc6f46bc", "jti": "235b3a54-b797-45c7-ae9a-f72d7bc6ef5b",
			"sub": "project_path:my-group/sub/my-project:ref_type:branch:ref:feature-branch-1",
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Gitlab: &typesv1.GitLabJoin{Allow: []*typesv1.GitLabRule{{
				ProjectPath: "my-group/*/my-project", NamespacePath: "my-group/*", Sub: "project_path:my-group/**:ref_type:branch:ref:feature-*", Ref: "feature-*", RefType: "branch",
				PipelineSource: "push", Environment: "test-environment2", UserLogin: "sample-user", UserId: "1", UserEmail: "sample-user@example.com",
				RefProtected: &yes, EnvironmentProtected: &no, CiConfigSha: "714a629c0b401fdce83e847fc9589983fc6f46bc",
				CiConfigRefUri: "gitlab.example.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main", DeploymentTier: "testing", ProjectVisibility: "public",
			}}}}
		},
		wrong:  rule(func(r *typesv1.GitLabRule) { r.ProjectPath = "my-group/*/my-projec" }),
		proves: map[string]string{"project_path": "my-group/sub/my-project", "ref_protected": "true", "environment_protected": "false"},
		bad: []bad{
			{name: "group_named_alike", claims: map[string]any{"namespace_path": "my-group-evil/sub"}, code: method.CodeRuleMismatch},
			{name: "deeper_group", claims: map[string]any{"namespace_path": "my-group/sub/deeper"}, code: method.CodeRuleMismatch},
			{name: "group_inside_another", claims: map[string]any{"project_path": "evil/my-group/sub/my-project"}, code: method.CodeRuleMismatch},
			{name: "subject_reaches_over", claims: map[string]any{"sub": "project_path:my-group/x:ref_type:tag:ref_type:branch:ref:feature-1"}, code: method.CodeRuleMismatch},
			{name: "branch_not_protected", claims: map[string]any{"ref_protected": "false"}, code: method.CodeRuleMismatch},
			{name: "environment_is_protected", claims: map[string]any{"environment_protected": "true"}, code: method.CodeRuleMismatch},
			{name: "merge_request_of_a_fork", claims: map[string]any{"project_path": "fork/my-project", "namespace_path": "fork", "pipeline_source": "merge_request_event"}, code: method.CodeRuleMismatch},
			{name: "other_case", claims: map[string]any{"namespace_path": "My-Group/sub"}, code: method.CodeRuleMismatch},
			{name: "domain_of_token", rule: func(s *typesv1.TokenSpec) { s.GetGitlab().Domain = "gitlab.example.com" }, code: method.CodeCloudUnreachable},
		},
	}
}

func circleciPlatform() platform {
	return platform{
		name: "circleci", issuer: "https://oidc.circleci.com/org/" + uuid1, aud: uuid1, env: "CIRCLE_OIDC_TOKEN_V2",
		claims: map[string]any{
			"sub":                           "org/" + uuid1 + "/project/" + uuid2 + "/user/" + uuid3 + "/vcs-origin/github.com/o/r/vcs-ref/refs/heads/main",
			"oidc.circleci.com/project-id":  uuid2,
			"oidc.circleci.com/context-ids": []string{uuid3, "cb32986e-2f6f-4f43-b2bd-d3c2fd98e903"},
			"oidc.circleci.com/vcs-ref":     "refs/heads/main", "oidc.circleci.com/vcs-origin": "github.com/o/r", "oidc.circleci.com/ssh-rerun": false,
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Circleci: &typesv1.CircleCIJoin{OrganizationId: uuid1, Allow: []*typesv1.CircleCIRule{{ProjectId: uuid2, ContextId: uuid3}}}}
		},
		wrong:  func(s *typesv1.TokenSpec) { s.GetCircleci().GetAllow()[0].ProjectId = uuid3 },
		proves: map[string]string{"project_id": uuid2, "ssh_rerun": "false"},
		bad: []bad{
			{name: "other_context", claims: map[string]any{"oidc.circleci.com/context-ids": []string{uuid1}}, code: method.CodeRuleMismatch},
			{name: "no_context", claims: map[string]any{"oidc.circleci.com/context-ids": nil}, code: method.CodeRuleMismatch},
			{name: "other_organization", rule: func(s *typesv1.TokenSpec) { s.GetCircleci().OrganizationId = uuid2 }, code: method.CodeCloudUnreachable},
		},
	}
}

func spaceliftPlatform() platform {
	rule := func(change func(*typesv1.SpaceliftRule)) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) { change(s.GetSpacelift().GetAllow()[0]) }
	}
	globs := func(space, caller string) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) {
			s.GetSpacelift().EnableGlobMatching = true
			s.GetSpacelift().GetAllow()[0].SpaceId, s.GetSpacelift().GetAllow()[0].CallerId = space, caller
		}
	}
	return platform{
		name: "spacelift", issuer: "https://demo.app.spacelift.io", aud: "demo.app.spacelift.io", env: "SPACELIFT_OIDC_TOKEN",
		claims: map[string]any{
			"sub": "space:legacy-01:stack:infra:run_type:TRACKED:scope:write", "jti": "01G8HJ4SYX8S8YX", "spaceId": "legacy-01", "callerType": "stack", "callerId": "infra",
			"runType": "TRACKED", "runId": "01GA1E9ZPKF6VS4", "scope": "write", "nbf": now.Unix(),
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Spacelift: &typesv1.SpaceliftJoin{
				Hostname: "demo.app.spacelift.io",
				Allow:    []*typesv1.SpaceliftRule{{SpaceId: "legacy-01", CallerId: "infra", CallerType: "stack", Scope: "write"}},
			}}
		},
		wrong:  rule(func(r *typesv1.SpaceliftRule) { r.SpaceId = "legacy" }),
		proves: map[string]string{"space_id": "legacy-01", "caller_id": "infra", "run_type": "TRACKED"},
		bad: []bad{
			{name: "read_only_run", claims: map[string]any{"scope": "read"}, code: method.CodeRuleMismatch},
			{name: "module", claims: map[string]any{"callerType": "module"}, code: method.CodeRuleMismatch},
			{name: "glob_other_space", rule: globs("modern-*", "infra"), code: method.CodeRuleMismatch},
			{name: "glob_other_caller", rule: globs("legacy-*", "infra-?"), code: method.CodeRuleMismatch},
			{name: "other_account", rule: func(s *typesv1.TokenSpec) { s.GetSpacelift().Hostname = "other.app.spacelift.io" }, code: method.CodeCloudUnreachable},
		},
	}
}

func terraformPlatform() platform {
	rule := func(change func(*typesv1.TerraformCloudRule)) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) { change(s.GetTerraformCloud().GetAllow()[0]) }
	}
	return platform{
		name: "terraform_cloud", issuer: "https://app.terraform.io", aud: suiteCluster,
		env: "TFC_WORKLOAD_IDENTITY_TOKEN_TELEPORT", settings: "terraform_cloud.audience_tag=TELEPORT",
		claims: map[string]any{
			"jti": "1192426d-b525-4fde-9d42-f238be437bbd", "nbf": now.Unix(), "terraform_run_phase": "apply", "terraform_workspace_id": "ws-mbsd5E3Ktt5Rg2Xm",
			"sub":                       "organization:my-org:project:Default Project:workspace:my-workspace:run_phase:apply",
			"terraform_organization_id": "org-GRNbCjYNpBB6NEBH", "terraform_organization_name": "my-org", "terraform_project_id": "prj-vegSA59s1XPwMr2t",
			"terraform_project_name": "Default Project", "terraform_workspace_name": "my-workspace", "terraform_full_workspace": "organization:my-org:project:Default Project:workspace:my-workspace",
			"terraform_run_id": "run-X3n1AUXNGWbfECsJ",
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{TerraformCloud: &typesv1.TerraformCloudJoin{Allow: []*typesv1.TerraformCloudRule{{
				OrganizationId: "org-GRNbCjYNpBB6NEBH", OrganizationName: "my-org", ProjectId: "prj-vegSA59s1XPwMr2t", ProjectName: "Default Project",
				WorkspaceId: "ws-mbsd5E3Ktt5Rg2Xm", WorkspaceName: "my-workspace", RunPhase: "apply",
			}}}}
		},
		wrong:  rule(func(r *typesv1.TerraformCloudRule) { r.OrganizationId, r.OrganizationName = "org-x", "" }),
		proves: map[string]string{"organization_name": "my-org", "workspace_id": "ws-mbsd5E3Ktt5Rg2Xm", "run_id": "run-X3n1AUXNGWbfECsJ"},
		bad: []bad{
			{name: "plan", claims: map[string]any{"terraform_run_phase": "plan"}, code: method.CodeRuleMismatch},
			{name: "workspace_of_other_organization", claims: map[string]any{"terraform_organization_name": "evil", "terraform_organization_id": "org-evil"}, code: method.CodeRuleMismatch},
			{name: "other_workspace", claims: map[string]any{"terraform_workspace_id": "ws-x"}, code: method.CodeRuleMismatch},
			{name: "audience_of_token", rule: func(s *typesv1.TokenSpec) { s.GetTerraformCloud().Audience = "another" }, code: method.CodeProofAudience},
		},
	}
}

func bitbucketPlatform() platform {
	idp := "https://api.bitbucket.org/2.0/workspaces/mattermost/pipelines-config/identity/oidc"
	rule := func(change func(*typesv1.BitbucketRule)) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) { change(s.GetBitbucket().GetAllow()[0]) }
	}
	return platform{
		name: "bitbucket", issuer: idp, aud: "ari:cloud:bitbucket::workspace/" + uuid1, env: "BITBUCKET_STEP_OIDC_TOKEN",
		claims: map[string]any{
			"sub": "{" + uuid2 + "}:{" + uuid3 + "}", "stepUuid": "{" + uuid3 + "}", "repositoryUuid": "{" + uuid2 + "}", "workspaceUuid": "{" + uuid1 + "}",
			"accountUuid": "{" + uuid1 + "}", "pipelineUuid": "{" + uuid3 + "}", "deploymentEnvironmentUuid": "{" + uuid3 + "}", "branchName": "main",
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Bitbucket: &typesv1.BitbucketJoin{
				Audience: "ari:cloud:bitbucket::workspace/" + uuid1, IdentityProviderUrl: idp,
				Allow: []*typesv1.BitbucketRule{{WorkspaceUuid: "{" + uuid1 + "}", RepositoryUuid: "{" + uuid2 + "}", DeploymentEnvironmentUuid: "{" + uuid3 + "}", BranchName: "main"}},
			}}
		},
		wrong:  rule(func(r *typesv1.BitbucketRule) { r.RepositoryUuid = "{" + uuid3 + "}" }),
		proves: map[string]string{"repository_uuid": "{" + uuid2 + "}", "branch_name": "main"},
		bad: []bad{
			{name: "without_braces", claims: map[string]any{"repositoryUuid": uuid2}, code: method.CodeRuleMismatch},
			{name: "other_branch", claims: map[string]any{"branchName": "main2"}, code: method.CodeRuleMismatch},
			{name: "no_deployment", claims: map[string]any{"deploymentEnvironmentUuid": nil}, code: method.CodeRuleMismatch},
		},
	}
}

func azureDevopsPlatform() platform {
	rule := func(change func(*typesv1.AzureDevopsRule)) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) { change(s.GetAzureDevops().GetAllow()[0]) }
	}
	return platform{
		name: "azure_devops", issuer: "https://vstoken.dev.azure.com/" + uuid1, aud: "api://AzureADTokenExchange",
		claims: map[string]any{
			"jti": uuid3, "sub": "p://example/test-oidc/my pipeline", "org_id": uuid1, "prj_id": uuid2, "def_id": "1", "rpo_id": uuid3,
			"rpo_uri": "https://dev.azure.com/example/test-oidc/_git/test-oidc", "rpo_ver": "e6b9eb29a288b27a3a82cc19c48b9d94b80aff36", "rpo_ref": "refs/heads/main", "run_id": "11",
			"nbf": now.Unix() - 600,
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{AzureDevops: &typesv1.AzureDevopsJoin{OrganizationId: uuid1, Allow: []*typesv1.AzureDevopsRule{{
				Sub: "p://example/test-oidc/my pipeline", ProjectName: "test-oidc", PipelineName: "my pipeline", ProjectId: uuid2, DefinitionId: "1",
				RepositoryUri: "https://dev.azure.com/example/test-oidc/_git/test-oidc", RepositoryVersion: "e6b9eb29a288b27a3a82cc19c48b9d94b80aff36", RepositoryRef: "refs/heads/main",
			}}}}
		},
		wrong:  rule(func(r *typesv1.AzureDevopsRule) { r.ProjectId = uuid3 }),
		proves: map[string]string{"project_name": "test-oidc", "pipeline_name": "my pipeline", "definition_id": "1", "run_id": "11"},
		bad: []bad{
			{name: "service_connection", claims: map[string]any{"sub": "sc://example/test-oidc/connection"}, rule: rule(func(r *typesv1.AzureDevopsRule) { r.Sub = "" }), code: method.CodeRuleMismatch},
			{name: "name_with_slash", claims: map[string]any{"sub": "p://example/evil/test-oidc/my pipeline"}, rule: rule(func(r *typesv1.AzureDevopsRule) { r.Sub = "" }), code: method.CodeRuleMismatch},
			{name: "pull_request", claims: map[string]any{"rpo_ref": "refs/pull/7/merge"}, code: method.CodeRuleMismatch},
			{name: "other_organization", claims: map[string]any{"org_id": uuid2}, code: method.CodeProofMachine},
		},
	}
}

func env0Platform() platform {
	rule := func(change func(*typesv1.Env0Rule)) func(*typesv1.TokenSpec) {
		return func(s *typesv1.TokenSpec) { change(s.GetEnv0().GetAllow()[0]) }
	}
	return platform{
		name: "env0", issuer: "https://login.app.env0.com/", aud: []string{"https://prod.env0.com", "https://env0.auth0.com/userinfo"}, env: "ENV0_OIDC_TOKEN",
		claims: map[string]any{
			"sub": "auth0|" + uuid3, "apiKeyType": "oidc", "organizationId": uuid1, "projectId": uuid2, "projectName": "my-project", "templateId": uuid3, "templateName": "t 1",
			"environmentId": uuid3, "environmentName": "e 1", "workspaceName": "ws", "deploymentLogId": uuid2, "deploymentType": "deploy", "deployerEmail": "a@example.com", "env0Tag": "tag",
			"exp": now.Unix() + 24*3600,
		},
		spec: func() *typesv1.TokenSpec {
			return &typesv1.TokenSpec{Env0: &typesv1.Env0Join{Allow: []*typesv1.Env0Rule{{
				OrganizationId: uuid1, ProjectId: uuid2, ProjectName: "my-project", TemplateId: uuid3, TemplateName: "t 1", EnvironmentId: uuid3, EnvironmentName: "e 1",
				WorkspaceName: "ws", DeploymentType: "deploy", DeployerEmail: "a@example.com", Env0Tag: "tag",
			}}}}
		},
		wrong:  rule(func(r *typesv1.Env0Rule) { r.OrganizationId = uuid3 }),
		proves: map[string]string{"organization_id": uuid1, "env0_tag": "tag", "deployment_log_id": uuid2},
		bad: []bad{
			{name: "token_of_an_api_key", claims: map[string]any{"apiKeyType": "organization"}, code: method.CodeProofMachine},
			{name: "no_kind", claims: map[string]any{"apiKeyType": nil}, code: method.CodeProofMachine},
			{name: "other_project", claims: map[string]any{"projectId": uuid3}, code: method.CodeRuleMismatch},
		},
	}
}
