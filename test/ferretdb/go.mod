// The FerretDB of the tests, which speaks MongoDB's protocol, and nothing else: it is a
// module of its own so that the product knows nothing of its dependencies. `make ferretdb`
// builds it from a copy of the module, as the file with its version is not in it.
module teleport/test/ferretdb

go 1.26.0

require github.com/FerretDB/FerretDB v1.24.0
