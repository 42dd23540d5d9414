package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cmd/sheep-nbd/attach"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
	"github.com/sheepdog-go/sheepdog/nbd"
	"github.com/sheepdog-go/sheepdog/vdi"
)

// deviceFlags are those about devices of the kernel.
func deviceFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "connect", Aliases: []string{"c"}, Usage: "attach it as the kernel's `DEVICE` (/dev/nbdN, or /dev/nbd for any that is free) and serve that"},
		&cli.IntFlag{Name: "connections", Aliases: []string{"C"}, Value: 1, Usage: "with -c: `NUM` connections between the kernel and us"},
		&cli.StringFlag{Name: "block-size", Value: "512", Usage: "with -c: the device's sector, 512 to 4096 `BYTES`"},
		&cli.DurationFlag{Name: "io-timeout", DefaultText: "15s", Usage: "with -c: the kernel sends a request again that was not answered for so long"},
		&cli.DurationFlag{Name: "dead-timeout", DefaultText: "10m", Usage: "with -c: how long the device's users wait for sheep-nbd to come back before they see an error"},
		&cli.StringFlag{Name: "disconnect", Aliases: []string{"d"}, Usage: "detach `DEVICE`, and end"},
		&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "with -d: although it is in use; its users get errors"},
		&cli.BoolFlag{Name: "list", Aliases: []string{"l"}, Usage: "list the attached devices, and end"},
	}
}

// deviceOptions is what the command line says of a device of the kernel.
type deviceOptions struct {
	wanted bool // -c
	attach.Config
}

// parseDevice checks the flags of -c.
func parseDevice(c *cli.Context) (d deviceOptions, err error) {
	if !c.IsSet("connect") {
		for _, name := range []string{"connections", "block-size", "io-timeout", "dead-timeout"} {
			if c.IsSet(name) {
				return d, usageError{fmt.Errorf("--%s goes with -c DEVICE", name)}
			}
		}
		return d, nil
	}
	for _, name := range []string{"socket", "bind", "port", "persistent", "shared", "export-name", "description", "handshake-limit"} {
		if c.IsSet(name) {
			return d, usageError{fmt.Errorf("--%s does not go with -c DEVICE: the kernel is the only client then", name)}
		}
	}
	d.wanted = true
	if d.Device, err = attach.ParseDevice(c.String("connect")); err != nil {
		return d, usageError{err}
	}
	block, err := units.ParseSize(c.String("block-size"))
	if err != nil || block < 512 || block > 4096 || block&(block-1) != 0 {
		return d, usageError{fmt.Errorf("invalid block size '%s': use 512, 1024, 2048 or 4096", c.String("block-size"))}
	}
	d.BlockSize, d.Connections, d.IOTimeout, d.DeadTimeout = block, c.Int("connections"), c.Duration("io-timeout"), c.Duration("dead-timeout")
	if d.Connections < 1 || d.Connections > 64 {
		return d, usageError{fmt.Errorf("invalid number of connections %d: use 1 to 64", d.Connections)}
	}
	if d.IOTimeout < 0 || d.DeadTimeout < 0 {
		return d, usageError{errors.New("a timeout is negative")}
	}
	return d, nil
}

// aboutDevices does what needs no cluster: -d and -l. done says that it was one of these.
func aboutDevices(c *cli.Context, out io.Writer) (done bool, err error) {
	switch {
	case c.IsSet("disconnect"):
		index, err := attach.ParseDevice(c.String("disconnect"))
		if err != nil || index == attach.AnyDevice {
			return true, usageError{fmt.Errorf("'%s' is no NBD device: use /dev/nbdN", c.String("disconnect"))}
		}
		if c.NArg() > 0 {
			return true, usageError{fmt.Errorf("-d takes no VDI")}
		}
		return true, withKernel(func(k attach.Kernel) error { return attach.Detach(k, index, c.Bool("force")) })
	case c.Bool("list"):
		return true, listDevices(out)
	case c.Bool("force"):
		return true, usageError{errors.New("-f goes with -d DEVICE")}
	}
	return false, nil
}

func withKernel(f func(attach.Kernel) error) error {
	k, done, err := attach.OpenKernel()
	if err != nil {
		return connectError{err}
	}
	defer done()
	return f(k)
}

// listDevices prints what is attached.
func listDevices(out io.Writer) error {
	if _, err := os.Stat("/sys/module/nbd"); err != nil {
		return connectError{attach.ErrNoModule}
	}
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "Device\tSize\tMode\tConnections\tState\tBackend")
	devices, err := attach.List()
	if err != nil {
		return err
	}
	for _, d := range devices {
		mode, how := "rw", "served"
		served, connections := attach.Served(d.Index)
		if d.ReadOnly {
			mode = "ro"
		}
		switch {
		case !strings.HasPrefix(d.Backend, backendPrefix):
			how = "not ours"
		case !served:
			how = "waits for sheep-nbd"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%s\n", attach.DeviceName(d.Index), units.Human(d.Size), mode, connections, how, cmp.Or(d.Backend, "-"))
	}
	return table.Flush()
}

const backendPrefix = "sheepdog:"

// backendName is the identity of what is behind a device. It is the same each time the same disk of the same cluster is served in the same way, and
// another one for a disk that was deleted and made anew: a file system that is mounted from the device would go on in that.
func backendName(cluster string, v *state.VDI, o *options) string {
	name := fmt.Sprintf("%s%s/%s/%d", backendPrefix, cluster, o.target, v.Identity())
	if o.readOnly {
		name += " read-only"
	}
	return name
}

// serveDevice attaches the VDI and serves the device until it is detached, or a signal ends it.
func serveDevice(ctx context.Context, o *options, log *slog.Logger) (err error) {
	time.Local = time.UTC // /etc/localtime may lie on the very disk that waits for us
	k, closeKernel, err := attach.OpenKernel()
	if err != nil {
		return connectError{err}
	}
	defer closeKernel()
	becomeFlusher(log)
	disks, err := connect(ctx, o, log)
	if err != nil {
		return err
	}
	defer disks.close()
	exports := attach.Watch(vdi.NewBackend(disks.client, vdi.BackendOptions{ReadOnly: o.readOnly, Only: o.target, Identity: disks.vdi.Identity()}))
	server, err := nbd.NewServer(nbd.Config{Logger: log, OpenTimeout: o.connect}, exports)
	if err != nil {
		return err
	}
	defer func() {
		server.Close() // not Shutdown: it would say ESHUTDOWN, and the kernel would hand that on as an I/O error
		err = errors.Join(err, exports.WaitClosed(stopTimeout))
	}()
	cfg := o.device.Config
	cfg.Backend, cfg.OpenTimeout, cfg.Logger = backendName(disks.client.Map().Cluster, disks.vdi, o), o.connect, log
	a, err := attach.Attach(ctx, k, server, exports, cfg)
	if err != nil {
		return err
	}
	defer a.Release()
	removePid, err := writePid(o.pidFile)
	if err != nil {
		return errors.Join(err, a.Leave())
	}
	defer removePid()
	if o.device.Device == attach.AnyDevice {
		fmt.Fprintln(os.Stdout, attach.DeviceName(a.Index()))
	}
	if err := ready(); err != nil {
		return errors.Join(err, a.Leave())
	}
	changed, cancel := disks.watcher.Subscribe()
	defer cancel()
	return a.Run(ctx, sizes(ctx, disks.watcher.Map, changed, o.target, disks.vdi.Identity(), a.Size()))
}

// sizes tells the VDI's size when it is another than last. What another VDI of the same name has, once this one is deleted, is none of the device's business.
func sizes(ctx context.Context, newest func() *state.Map, changed <-chan struct{}, target string, identity, last uint64) <-chan uint64 {
	resized := make(chan uint64, 1)
	size := func() uint64 {
		name, snap := vdi.SplitName(target)
		v, err := newest().Lookup(name, snap)
		if err != nil || v.Identity() != identity {
			return 0
		}
		return v.Size
	}
	go func() {
		for {
			if now := size(); now != 0 && now != last {
				last = now
				select {
				case <-resized: // of before
				default:
				}
				resized <- now
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return resized
}
