package mongodb_test

import (
	"testing"

	"go.mongodb.org/mongo-driver/v2/bson"

	"teleport/internal/service/db/dbtest"
)

// BenchmarkFindOne compares one query after the other through the service with the same
// straight to the server, which then also checks the certificate.
func BenchmarkFindOne(b *testing.B) {
	w := start(b)
	w.Events.Discard()
	files := dbtest.ClientFiles(b, "alice")
	for name, uri := range map[string]string{
		"through": "mongodb://" + w.addr + "/",
		"direct": "mongodb://localhost:" + w.server.port + "/?directConnection=true&authMechanism=MONGODB-X509&tls=true&tlsInsecure=true&tlsCertificateKeyFile=" +
			concat(b, files.Cert, files.Key),
	} {
		b.Run(name, func(b *testing.B) {
			c := driver(b, uri).Database("shop").Collection("greetings")
			for b.Loop() {
				if err := c.FindOne(b.Context(), bson.D{{Key: "text", Value: "hello"}}).Err(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
