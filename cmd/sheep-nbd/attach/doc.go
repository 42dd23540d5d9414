// Package attach makes a block device of the kernel, /dev/nbdN, out of an export that this very process serves.
//
//	/dev/nbd0 ─ kernel ═══ N socket pairs ═══ nbd.Server ─ the disk
//
// One half of each pair belongs to the server. On the other half this package leads the NBD handshake as a client does, and then hands it to the
// kernel by netlink. The kernel speaks the transmission phase, with simple replies.
//
//	genl.go       the kernel's netlink messages: drawn, encoded, decoded
//	kernel.go     sending them
//	handshake.go  the client's side of the handshake
//	pair.go       socket pairs
//	attach.go     a device's life: attach, join again, renew, leave, detach
//	view.go       what is attached, and whether somebody uses it
//	hold.go       one process for each device
//
// # What happens when this process ends
//
// The device stays. The kernel lets its users wait, for as long as DeadTimeout, until somebody brings new sockets for the same
// backend: this program, started again. So it can be restarted, or killed, under a mounted file system.
//
//   - Told to stop, it takes in nothing more, answers all that it has (no request gets an error: the kernel would hand it on as EIO), and lets go.
//     The kernel keeps what it could not send for the next process. A device that nobody uses is detached instead.
//   - Killed, it leaves requests that were sent and not answered. The kernel sends these again after IOTimeout. The cluster fences the dead process's
//     session before the new one may write, so that nothing old lands on top.
//
// # A root on the device
//
// The process is started in an initial ramdisk then, and stays behind there when the root is switched: it finds nothing by path any more. So /sys, /dev and
// /proc are held open from the beginning (view.go). A process that is started later, while the root waits for it, must need nothing of the root: its program, the
// shell that starts it and HoldDir lie in memory.
//
// # Goroutines
//
// None: Run runs on its caller's.
package attach
