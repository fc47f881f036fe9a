package webapp

import (
	"net/http"

	"teleport/internal/cors"
)

// markOrigin lets scripts of the origin read an answer, if the policy of the application
// does.
func (t target) markOrigin(header http.Header, origin string) {
	cors.Mark(header, t.cors, origin)
}
