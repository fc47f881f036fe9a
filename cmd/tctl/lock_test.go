package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	statusv1 "teleport/api/status/v1"
	tokenv1 "teleport/api/token/v1"
	typesv1 "teleport/api/types/v1"
	"teleport/internal/client/clienttest"
	"teleport/internal/types"
)

var createdLock = regexp.MustCompile(`^Created a lock with name "([0-9a-f-]{36})"\.\n$`)

// lockOf makes a lock with tctl and returns what is stored.
func lockOf(t *testing.T, c *clienttest.Cluster, args ...string) *typesv1.Lock {
	t.Helper()
	out := ok(t, "", append([]string{"lock"}, args...)...)
	m := createdLock.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("tctl lock %q: %q", args, out)
	}
	l, _ := c.Resources.Get(types.KindLock, m[1]).(*typesv1.Lock)
	if l == nil {
		t.Fatalf("tctl lock %q: no lock %s is stored", args, m[1])
	}
	return l
}

func TestLock(t *testing.T) {
	c := setUp(t)
	instance := types.New(types.KindInstance, "h-1").(*typesv1.Instance)
	instance.Spec = &typesv1.InstanceSpec{Hostname: "web-1"}
	c.Resources.Put(instance)
	token := clienttest.Derive(secret)
	c.Tokens.List = append(c.Tokens.List, &tokenv1.ListedToken{Id: token})
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--user=alice"}, "user=alice"},
		{[]string{"--role=dev"}, "role=dev"},
		{[]string{"--login=root"}, "login=root"},
		{[]string{"--server-id=h-1"}, "server_id=h-1"},
		{[]string{"--mfa-device=6f1c0e7d"}, "mfa_device=6f1c0e7d"},
		{[]string{"--join-token=" + token}, "join_token=" + token},
		{[]string{"--join-token=" + secret}, "join_token=" + token},
		{[]string{"--join-token=aaaaaaaaaaaaaaaaaaaaaaaa"}, "join_token=aaaaaaaaaaaaaaaaaaaaaaaa"},
		{[]string{"--user=alice", "--login=root"}, "user=alice,login=root"},
	} {
		if got := types.LockTargetText(lockOf(t, c, tt.args...).GetSpec().GetTarget()); got != tt.want {
			t.Errorf("tctl lock %q locks %q, want %q", tt.args, got, tt.want)
		}
	}
	l := lockOf(t, c, "--user=alice", "--message=left the company", "--ttl=7d")
	if left := time.Until(l.GetSpec().GetExpires().AsTime()); l.GetSpec().GetMessage() != "left the company" || left > 7*24*time.Hour+time.Second || left < 7*24*time.Hour-time.Minute {
		t.Errorf("lock = %v", l)
	}
	l = lockOf(t, c, "--user=alice", "--expires=2199-01-02T15:04:05Z")
	if got := l.GetMetadata().GetExpires().AsTime().Format(time.RFC3339); got != "2199-01-02T15:04:05Z" {
		t.Errorf("expires %s", got)
	}
	for _, tt := range []struct {
		code  int
		words string
		args  []string
	}{
		{2, "say what to lock", nil},
		{2, "say what to lock", []string{"--message=m"}},
		{2, "not both", []string{"--user=a", "--ttl=1h", "--expires=2199-01-02T15:04:05Z"}},
		{2, "not a duration", []string{"--user=a", "--ttl=soon"}},
		{2, "not a time", []string{"--user=a", "--expires=tomorrow"}},
		{2, "has passed", []string{"--user=a", "--expires=2001-01-02T15:04:05Z"}},
		{2, "unexpected argument", []string{"alice"}},
		{1, "spec.target.user", []string{"--user=a b"}},
		{1, "spec.message", []string{"--user=a", "--message=\x1b[2J"}},
		{1, "no machine with the host id", []string{"--server-id=web-1"}},
		{1, "there is no such token", []string{"--join-token=a-secret-that-nobody-knows"}},
	} {
		fails(t, tt.code, tt.words, append([]string{"lock"}, tt.args...)...)
	}
}

func TestLockLs(t *testing.T) {
	c := setUp(t)
	if got := ok(t, "", "lock", "ls"); got != "No locks.\n" {
		t.Errorf("without locks: %q", got)
	}
	l := types.NewLock(&typesv1.LockTarget{User: "alice"}, "left", "admin", now(), time.Time{})
	l.Status = &typesv1.LockStatus{Confirmed: 3, Expected: 4, Pending: []*typesv1.LockPending{{HostId: "h", Hostname: "web-1"}}}
	c.Resources.Put(l)
	for _, args := range [][]string{{"lock", "ls"}, {"get", "locks", "--format=text"}} {
		lines := strings.Split(ok(t, "", args...), "\n")
		fields := strings.Join(strings.Fields(lines[2]), " ")
		if want := l.GetMetadata().GetName() + " user=alice left never 3 of 4 web-1 (not connected)"; fields != want {
			t.Errorf("tctl %q: %q, want %q", args, fields, want)
		}
	}
	var list []map[string]any
	if err := json.Unmarshal([]byte(ok(t, "", "lock", "ls", "--format=json")), &list); err != nil || len(list) != 1 || list[0]["status"] == nil {
		t.Errorf("--format=json: %v, %v", list, err)
	}
	if got := ok(t, "", "rm", "lock/"+l.GetMetadata().GetName()); !strings.Contains(got, "has been deleted") {
		t.Errorf("rm: %q", got)
	}
}

func TestAlerts(t *testing.T) {
	c := setUp(t)
	created := regexp.MustCompile(`^Created an alert with ID "([0-9a-f-]{36})"\.\n$`)
	make := func(args ...string) string {
		t.Helper()
		m := created.FindStringSubmatch(ok(t, "", append([]string{"alerts", "create"}, args...)...))
		if m == nil {
			t.Fatal("no ID was printed")
		}
		return m[1]
	}
	low, high := make("disk is half full"), make("--severity=high", "--ttl=0", "--labels=team=ops", "disk is full")
	stored := c.Resources.Get(types.KindClusterAlert, high).(*typesv1.ClusterAlert)
	if stored.GetMetadata().GetExpires() != nil || stored.GetMetadata().GetLabels()["team"] != "ops" || stored.GetSpec().GetSeverity() != "high" {
		t.Errorf("high alert = %v", stored)
	}
	if e := c.Resources.Get(types.KindClusterAlert, low).GetMetadata().GetExpires(); e == nil || time.Until(e.AsTime()) > 24*time.Hour {
		t.Errorf("low alert expires %v, want in 24h", e)
	}
	list := ok(t, "", "alerts", "ls")
	if !regexp.MustCompile(`(?s)^ID +Severity +Expires In +Message *\n.*` + high + ` +high +never +disk is full.*` + low + ` +low +(24h|23h59m[0-9]+s) +disk is half full\n$`).MatchString(list) {
		t.Errorf("alerts ls: %s", list)
	}
	c.Status = &statusv1.GetStatusResponse{ClusterName: "c"}
	if got := ok(t, "", "status"); !strings.HasSuffix(got, "\nALERT "+high+": disk is full\n") || strings.Contains(got, "half") {
		t.Errorf("status: %s", got)
	}
	ok(t, "", "alerts", "ack", high, "--reason=ordered a new one", "--ttl=2d")
	ack := c.Resources.Get(types.KindClusterAlert, high).(*typesv1.ClusterAlert).GetSpec().GetAcknowledged()
	if left := time.Until(ack.GetUntil().AsTime()); ack.GetReason() != "ordered a new one" || left > 48*time.Hour || left < 47*time.Hour {
		t.Errorf("acknowledged: %v", ack)
	}
	if got := ok(t, "", "status"); strings.Contains(got, "ALERT") {
		t.Errorf("status after ack: %s", got)
	}
	if got := ok(t, "", "alerts", "ls"); strings.Contains(got, high) || !strings.Contains(got, low) {
		t.Errorf("alerts ls after ack: %s", got)
	}
	if got := ok(t, "", "alerts", "ls", "-v"); !strings.Contains(got, high) {
		t.Errorf("alerts ls -v: %s", got)
	}
	if got := ok(t, "", "alerts", "ack", "ls"); !strings.Contains(got, high) || !strings.Contains(got, "ordered a new one") || strings.Contains(got, low) {
		t.Errorf("alerts ack ls: %s", got)
	}
	ok(t, "", "alerts", "ack", high, "--clear")
	if got := ok(t, "", "alerts", "ls"); !strings.Contains(got, high) {
		t.Errorf("alerts ls after --clear: %s", got)
	}
	fails(t, 1, "was not acknowledged", "alerts", "ack", high, "--clear")
	ok(t, "", "alerts", "ack", high, "--ttl=0")
	stored = c.Resources.Get(types.KindClusterAlert, high).(*typesv1.ClusterAlert)
	if stored.GetSpec().GetAcknowledged() == nil || stored.GetSpec().GetAcknowledged().GetUntil() != nil {
		t.Errorf("acknowledged for good: %v", stored)
	}
	// An acknowledgement that has ended does not count.
	stored.Spec.Acknowledged.Until = timestamppb.New(time.Now().Add(-time.Minute))
	c.Resources.Put(stored)
	if got := ok(t, "", "alerts", "ls", "--format=json"); !strings.Contains(got, high) {
		t.Errorf("after its end: %s", got)
	}
	ok(t, "", "alerts", "delete", high)
	if c.Resources.Get(types.KindClusterAlert, high) != nil {
		t.Error("the alert is still there")
	}
	fails(t, 1, high, "alerts", "delete", high)
	fails(t, 1, "spec.severity", "alerts", "create", "--severity=urgent", "m")
	fails(t, 2, "--ttl", "alerts", "create", "--ttl=soon", "m")
	fails(t, 2, "argument is missing", "alerts", "create")
	fails(t, 2, "argument is missing", "alerts", "ack")
}
