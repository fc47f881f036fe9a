package mongodb_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	auditv1 "teleport/api/audit/v1"
	"teleport/internal/service/db/dbtest"
)

// driver connects with the Go driver.
func driver(t testing.TB, uri string) *mongo.Client {
	t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(uri).SetServerSelectionTimeout(10 * time.Second).SetTimeout(30 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = c.Disconnect(ctx)
	})
	return c
}

func TestGoDriver(t *testing.T) {
	w := start(t)
	host, port, _ := net.SplitHostPort(w.alice.Direct(t, "docs"))
	files := w.alice.Native(t)
	pem := concat(t, files.Cert, files.Key)
	free := w.Person(t, "alice", "docs", nil, nil).Tunnel(t, "docs")
	for name, uri := range map[string]string{
		"none":       "mongodb://" + w.addr + "/?directConnection=true",
		"undirected": "mongodb://" + w.addr + "/",
		"compressed": "mongodb://" + w.addr + "/?compressors=zlib",
		"scram":      "mongodb://alice:teleport@" + free + "/",
		"plain":      "mongodb://alice:any@" + free + "/?authMechanism=PLAIN&authSource=$external",
		"x509":       "mongodb://" + host + ":" + port + "/?authMechanism=MONGODB-X509&tls=true&tlsInsecure=true&tlsCertificateKeyFile=" + pem,
	} {
		t.Run(name, func(t *testing.T) {
			shop := driver(t, uri).Database("shop")
			ctx := t.Context()
			var found bson.M
			if err := shop.Collection("greetings").FindOne(ctx, bson.D{{Key: "text", Value: "hello"}}).Decode(&found); err != nil {
				t.Fatal(err)
			}
			things := shop.Collection("things_" + name)
			var docs []any
			for i := range 3000 {
				docs = append(docs, bson.D{{Key: "n", Value: i}, {Key: "pad", Value: strings.Repeat("x", 100)}})
			}
			if _, err := things.InsertMany(ctx, docs); err != nil {
				t.Fatal(err)
			}
			if n, err := things.CountDocuments(ctx, bson.D{{Key: "n", Value: bson.D{{Key: "$gte", Value: 1000}}}}); err != nil || n != 2000 {
				t.Errorf("CountDocuments = %d, %v", n, err)
			}
			cur, err := things.Find(ctx, bson.D{}, options.Find().SetBatchSize(500))
			if err != nil {
				t.Fatal(err)
			}
			var all []bson.M
			if err := cur.All(ctx, &all); err != nil || len(all) != 3000 {
				t.Errorf("%d documents were found, %v", len(all), err)
			}
			if _, err := shop.Collection("x").Aggregate(ctx, mongo.Pipeline{{{Key: "$nonsense", Value: 1}}}); err == nil {
				t.Error("nonsense worked")
			}
		})
	}
	w.Events.Wait(t, "TDB02I", func(e *auditv1.Event) bool {
		q := dbtest.Field(e, "db_query")
		return strings.HasPrefix(q, `{"insert": "things_none"`) && strings.Contains(q, `"documents": [{`) && dbtest.Field(e, "db_name") == "shop"
	})
	w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool { return strings.Contains(dbtest.Field(e, "db_query"), "$nonsense") })
	for name, uri := range map[string]string{
		`give "teleport"`:     "mongodb://alice:wrong@" + free + "/",
		"certificate":         "mongodb://bob:any@" + w.addr + "/?authMechanism=SCRAM-SHA-256&authSource=admin",
		"tsh db login":        "mongodb://" + free + "/",
		"does not take the c": "mongodb://carol:teleport@" + free + "/",
	} {
		if err := driver(t, uri).Database("shop").RunCommand(t.Context(), bson.D{{Key: "count", Value: "greetings"}}).Err(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want %q", uri, err, name)
		}
	}
}

func concat(t testing.TB, paths ...string) string {
	t.Helper()
	var all []byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	out := filepath.Join(t.TempDir(), "client.pem")
	if err := os.WriteFile(out, all, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestLarge: documents of the largest size go both ways, and are not kept.
func TestLarge(t *testing.T) {
	w := start(t)
	big := driver(t, "mongodb://"+w.addr+"/").Database("shop").Collection("big")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 3 {
		docs := []any{
			bson.D{{Key: "_id", Value: 2 * i}, {Key: "pad", Value: strings.Repeat("x", 14<<20)}},
			bson.D{{Key: "_id", Value: 2*i + 1}, {Key: "pad", Value: strings.Repeat("y", 14<<20)}},
		}
		if _, err := big.InsertMany(t.Context(), docs); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	cur, err := big.Find(t.Context(), bson.D{}, options.Find().SetBatchSize(1))
	if err != nil {
		t.Fatal(err)
	}
	for cur.Next(t.Context()) {
		n += len(cur.Current)
	}
	if cur.Err() != nil || n < 6*14<<20 {
		t.Errorf("%d bytes came back, %v", n, cur.Err())
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 96<<20 {
		t.Errorf("the heap grew by %d MiB, with the client's own buffers", grown>>20)
	}
	e := w.Events.Query(t, `{"insert": "big"`)
	if q := dbtest.Field(e, "db_query"); len(q) > 17<<10 || !strings.Contains(q, `"documents": [`) {
		t.Errorf("an insert is recorded as %d bytes: %.200s", len(q), q)
	}
}

const python = `
import sys, pymongo
host, port, user = sys.argv[1], int(sys.argv[2]), sys.argv[3]
more = dict(username=user, password='teleport', authMechanism='SCRAM-SHA-256') if user else {}
shop = pymongo.MongoClient(host, port, serverSelectionTimeoutMS=10000, **more).shop
shop.py.drop()
shop.py.insert_many([{'n': n} for n in range(250)])
assert shop.py.count_documents({'n': {'$lt': 100}}) == 100
assert len(list(shop.py.find({}, batch_size=50))) == 250
assert shop.py.update_many({}, {'$set': {'seen': True}}).modified_count == 250
assert [d['n'] for d in shop.py.aggregate([{'$match': {'n': 7}}])] == [7]
shop.py.create_index('n', unique=True)
try:
    shop.py.insert_one({'n': 7})
    raise SystemExit('a second 7')
except pymongo.errors.DuplicateKeyError:
    pass
shop.get_collection('py', write_concern=pymongo.WriteConcern(w=0)).insert_one({'n': 1000})
print(shop.py.find_one({'n': 7})['seen'])
`

func TestPyMongo(t *testing.T) {
	w := start(t)
	free := w.Person(t, "alice", "docs", nil, nil).Tunnel(t, "docs")
	for user, addr := range map[string]string{"": w.addr, "alice": free} {
		host, port, _ := net.SplitHostPort(addr)
		out, err := dbtest.Output(exec.Command("/usr/bin/python3", "-c", python, host, port, user))
		if err != nil || strings.TrimSpace(out) != "True" {
			t.Errorf("pymongo as %q: %v: %s", user, err, out)
		}
	}
	w.Events.Query(t, `{"update": "py", "ordered": true`)
	// An insert that the server took no part of is an error of its own.
	w.Events.Wait(t, "TDB02W", func(e *auditv1.Event) bool {
		return strings.Contains(dbtest.Field(e, "error"), "writeErrors") && strings.Contains(dbtest.Field(e, "db_query"), `"n": 7`)
	})
	if t.Failed() {
		for _, e := range w.Events.All("TDB02W") {
			t.Log(fmt.Sprint(dbtest.Field(e, "db_query"), dbtest.Field(e, "error")))
		}
	}
}
