// Package resume makes a connection that outlives the connections under it. A client
// and a node keep what they sent until the other end has taken it; when the path
// between them breaks, the client dials again, proves that it is the one from before,
// and both go on at the byte where the other stopped. It is made for SSH through a
// Proxy, but reads nothing of what it carries. It does not dial and it does not know
// who the user is: both are its caller's.
//
// What a node sends first is its SSH identification, with Mark as its comment. What a
// client sends first decides. "SSH-" begins plain SSH, which passes unchanged; a line
// of this package begins one of two exchanges:
//
//	client -> teleport-resume/1 new <X25519 key>
//	node   -> teleport-resume/1 new <X25519 key>            then frames, both ways
//	       or teleport-resume/1 refused                     then plain SSH
//
//	client -> teleport-resume/1 again <token> <attempt> <nonce>
//	node   -> teleport-resume/1 again <nonce>
//	client -> received (8), HMAC-SHA256 (32)
//	node   -> status (1), received (8), HMAC-SHA256 (32)    then frames, both ways
//	       or teleport-resume/1 gone, in place of the first or the last answer
//
// Binary values in lines are unpadded base64url, numbers elsewhere big-endian. The
// token (16 bytes) and a key for each direction come from the shared secret by HKDF
// over SHA-256. The HMACs cover the token, the attempt, both nonces and both counters;
// the number of the attempt has to grow.
//
// A frame is a header of 12 bytes and its payload:
//
//	kind (1)  size of the payload (3)  bytes taken by the reader of the sender (8)
//
//	1 data   bytes of the stream
//	2 ack    nothing: the header says it
//	3 ping   asks for a pong
//	4 pong
//	5 fin    nothing more comes; the other direction goes on
//	6 close  the sender has closed the connection: nobody may resume it
//	7 keep   4 bytes: the node keeps the connection this many seconds without a path
//
// At most Window bytes are under way that the other end's reader has not taken, so
// that the end that receives always has room, and what is kept for sending again is
// bounded too. A connection without the keep frame ends with its path: a node sends it
// when the user has logged in.
package resume
