package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	typesv1 "teleport/api/types/v1"
	"teleport/internal/audit"
	"teleport/internal/client/screen"
	"teleport/internal/fault"
	"teleport/internal/join/evidence"
	"teleport/internal/join/method"
	"teleport/internal/types"
)

type tryOptions struct {
	as, event, format string
}

func newTokensTest(a *app) *cobra.Command {
	var o tryOptions
	cmd := &cobra.Command{
		Use:   "test TOKEN --as=FILE|--from-audit=ID",
		Short: "Compare the rules of a join token with what a machine proves",
		Long: "test compares each field of each allow rule of a token with what a machine proves, or proved.\n\n" +
			"FILE (or - for standard input) has attributes in JSON or YAML, a token of a platform (JWT), or the answer of\n" +
			"`aws sts get-caller-identity`. Nothing in it is verified: it only shows what the rules would say.\n" +
			"ID is the uid of an instance.join event, admitted or refused: tctl audit ls --type=instance.join --format=json.\n\n" +
			"Exit codes: 0 the machine would be admitted, 1 it would not or something failed, 2 a mistake on the command line.",
		Args: screen.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (o.as == "") == (o.event == "") {
				return screen.Usage("tctl tokens test: give either --as=FILE or --from-audit=ID")
			}
			return runTokensTest(cmd.Context(), a, args[0], o)
		},
	}
	cmd.Flags().StringVar(&o.as, "as", "", "file with what the machine proves; - is standard input")
	cmd.Flags().StringVar(&o.event, "from-audit", "", "uid of an instance.join event")
	screen.FormatFlag(cmd, &o.format, screen.Text, screen.JSON, screen.YAML)
	return cmd
}

// trial is a token's rules compared with evidence.
type trial struct {
	Token      string              `json:"token" yaml:"token"`
	JoinMethod string              `json:"join_method" yaml:"join_method"`
	Evidence   string              `json:"evidence" yaml:"evidence"`
	Attributes map[string][]string `json:"attributes" yaml:"attributes"`
	Rules      []triedRule         `json:"rules" yaml:"rules"`
	Admitted   bool                `json:"admitted" yaml:"admitted"`
	// Reason says in one line why or why not.
	Reason string `json:"reason" yaml:"reason"`
}

type triedRule struct {
	Path    string       `json:"path" yaml:"path"`
	Matched bool         `json:"matched" yaml:"matched"`
	Fields  []triedField `json:"fields" yaml:"fields"`
}

type triedField struct {
	Name    string   `json:"name" yaml:"name"`
	Want    []string `json:"want" yaml:"want"`
	Got     []string `json:"got" yaml:"got"`
	Matched bool     `json:"matched" yaml:"matched"`
}

func runTokensTest(ctx context.Context, a *app, given string, o tryOptions) error {
	var proof *evidence.Evidence
	if o.as != "" {
		name, data, err := a.readInput(o.as)
		if err != nil {
			return err
		}
		if proof, err = evidence.Read(data); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return a.with(ctx, func(conn grpc.ClientConnInterface) error {
		token, err := findToken(ctx, conn, given)
		if err != nil {
			return err
		}
		if proof == nil {
			if proof, err = a.eventEvidence(ctx, conn, o.event, token); err != nil {
				return err
			}
		}
		result := try(token, proof, a.now())
		if err := result.write(a, o.format); err != nil {
			return err
		}
		if !result.Admitted {
			return screen.Code(screen.ExitError)
		}
		return nil
	})
}

// eventEvidence reads what was verified in the join of an event.
func (a *app) eventEvidence(ctx context.Context, conn grpc.ClientConnInterface, id string, token *typesv1.Token) (*evidence.Evidence, error) {
	event, err := findEvent(ctx, conn, id, audit.InstanceJoin.Type)
	if err != nil {
		return nil, err
	}
	if name := text(event, "token_name"); name != token.GetMetadata().GetName() {
		_, _ = fmt.Fprintf(a.Err, "The event is of a join by token %s.\n", screen.Escape(name))
	}
	proof := evidence.FromEvent(event.GetFields())
	if len(proof.Attributes) == 0 && text(event, "method") != types.JoinMethodToken {
		return nil, fault.Invalid("nothing was verified in this join, so there is nothing to compare: it ended with %q (%s)", text(event, "reason"), text(event, "error"))
	}
	return proof, nil
}

// try compares the rules, and looks at what else would stop a machine.
func try(token *typesv1.Token, proof *evidence.Evidence, now time.Time) *trial {
	spec := token.GetSpec()
	results, admitted := method.Match(spec, method.Claims{Attributes: proof.Attributes})
	out := &trial{
		Token: token.GetMetadata().GetName(), JoinMethod: spec.GetJoinMethod(), Evidence: proof.Form, Attributes: proof.Attributes,
		Rules: []triedRule{}, Admitted: admitted, Reason: "no rule of the token matches",
	}
	for _, r := range results {
		tried := triedRule{Path: r.Path, Matched: r.Matched}
		for _, f := range r.Fields {
			tried.Fields = append(tried.Fields, triedField(f))
		}
		out.Rules = append(out.Rules, tried)
		if r.Matched && admitted {
			out.Reason = r.Path + " matches"
		}
	}
	if len(results) == 0 && admitted {
		out.Reason = fmt.Sprintf("tokens of method %s have no rules: the proof alone admits", spec.GetJoinMethod())
	}
	switch exp, most := token.GetMetadata().GetExpires(), spec.GetMaxUses(); {
	case !admitted:
	case exp != nil && !exp.AsTime().After(now):
		out.Admitted, out.Reason = false, "the token has expired"
	case most > 0 && token.GetStatus().GetUses() >= most:
		out.Admitted, out.Reason = false, fmt.Sprintf("every join that the token is good for (%d) is used", most)
	}
	return out
}

func (t *trial) write(a *app, format string) error {
	switch format {
	case screen.JSON:
		return screen.WriteJSON(a.Out, t)
	case screen.YAML:
		return screen.WriteYAML(a.Out, t)
	}
	verified := "not verified"
	if t.Evidence == evidence.FormEvent {
		verified = "as the Auth Service verified it"
	}
	if err := a.print("Token %s, method %s, compared with %s (%s)\n", screen.Escape(t.Token), screen.Escape(t.JoinMethod), t.Evidence, verified); err != nil {
		return err
	}
	for _, r := range t.Rules {
		if err := a.print("\n%s: %s\n", screen.Escape(r.Path), matchWord(r.Matched)); err != nil {
			return err
		}
		table := screen.NewTable("Field", "Want", "Got", "Result")
		table.Gap = 2
		for _, f := range r.Fields {
			got := strings.Join(f.Got, ", ")
			if len(f.Got) == 0 {
				got = "(nothing)"
			}
			table.Row(f.Name, strings.Join(f.Want, " or "), got, matchWord(f.Matched))
		}
		if err := table.Write(a.Out); err != nil {
			return err
		}
	}
	verdict := "The machine would NOT be admitted"
	if t.Admitted {
		verdict = "The machine would be admitted"
	}
	return a.print("\n%s: %s.\n", verdict, screen.Escape(t.Reason))
}

func matchWord(matched bool) string {
	if matched {
		return "matches"
	}
	return "does not match"
}
