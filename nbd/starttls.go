package nbd

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
)

// startTLS upgrades the connection. Everything negotiated before is forgotten, and bytes that came in the clear behind the option
// end the connection: they would pass for bytes that came through TLS (CVE-2021-3716 and its relatives).
func (h *handshake) startTLS(data []byte) error {
	switch {
	case len(data) != 0:
		return h.fail(optStartTLS, repErrInvalid, "STARTTLS has no data")
	case h.peer.TLS != nil:
		return h.fail(optStartTLS, repErrInvalid, "TLS is in use already")
	case h.srv.cfg.TLSMode == TLSOff:
		return h.fail(optStartTLS, repErrPolicy, "this server does not offer TLS")
	case h.rd.Buffered() > 0:
		return &protocolError{"data in the clear behind STARTTLS"}
	}
	if err := h.ack(optStartTLS); err != nil {
		return err
	}
	tc := tls.Server(h.raw, h.srv.cfg.TLS)
	if err := tc.HandshakeContext(h.ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	state := tc.ConnectionState()
	if !state.HandshakeComplete {
		return errors.New("TLS handshake is incomplete")
	}
	h.nc, h.rd = tc, bufio.NewReaderSize(tc, 4096)
	h.peer.TLS = &state
	h.mode, h.metaExport, h.contexts = simpleReplies, "", nil
	return nil
}
