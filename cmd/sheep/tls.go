package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cmd/sheep/certs"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/output"
)

const (
	defaultDays = 3650
	daysMax     = 36500
)

func (s *shell) tlsCommand() *cli.Command {
	days := &cli.IntFlag{Name: "days", Value: defaultDays, Usage: "how long it is valid"}
	hosts := &cli.StringFlag{Name: "host", Usage: "`NAME,ADDRESS,...` by which clients reach the server (default: this machine's name, localhost, 127.0.0.1, ::1)"}
	dir := &cli.StringFlag{Name: "dir", Value: certs.DefaultDir, Usage: "the authority's `DIR`"}
	return &cli.Command{Name: "tls", Usage: "certificates for NBD by TLS", Subcommands: []*cli.Command{
		{Name: "init", Usage: "make an authority, a server's and a client's certificate", ArgsUsage: "[DIR]", Action: s.tlsInit, Flags: []cli.Flag{hosts, days,
			&cli.StringFlag{Name: "client", Value: "client", Usage: "the client's `NAME`, by which --nbd-tls-access knows it"}}},
		{Name: "server", Usage: "make a certificate for one more server", ArgsUsage: "OUT-DIR", Action: s.tlsServer, Flags: []cli.Flag{dir, hosts, days}},
		{Name: "client", Usage: "make a certificate for one more client", ArgsUsage: "NAME OUT-DIR", Action: s.tlsClient, Flags: []cli.Flag{dir, days}},
		{Name: "show", Usage: "list the certificates in a directory", ArgsUsage: "[DIR]", Action: s.tlsShow, Flags: []cli.Flag{
			&cli.BoolFlag{Name: "raw", Aliases: []string{"r"}, Usage: "one record a line"}, &cli.BoolFlag{Name: "json", Usage: "print JSON"}}},
	}}
}

// validDays reads --days.
func validDays(c *cli.Context) (time.Duration, error) {
	days := c.Int("days")
	if days < 1 || days > daysMax {
		return 0, usagef("Invalid --days %d: use 1 to %d", days, daysMax)
	}
	return time.Duration(days) * 24 * time.Hour, nil
}

// serverHosts reads --host.
func serverHosts(c *cli.Context) (hosts []string) {
	for host := range strings.SplitSeq(c.String("host"), ",") {
		if host = strings.Trim(strings.TrimSpace(host), "[]"); host != "" {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) > 0 {
		return hosts
	}
	if name, err := os.Hostname(); err == nil && name != "localhost" && strings.Trim(name, "()") == name {
		hosts = append(hosts, name)
	}
	return append(hosts, "localhost", "127.0.0.1", "::1")
}

func dirArgument(c *cli.Context) (string, error) {
	if err := arguments(c, "[DIR]"); err != nil {
		return "", err
	}
	if c.NArg() == 1 {
		return c.Args().First(), nil
	}
	return certs.DefaultDir, nil
}

func (s *shell) tlsInit(c *cli.Context) error {
	dir, err := dirArgument(c)
	if err != nil {
		return err
	}
	valid, err := validDays(c)
	if err != nil {
		return err
	}
	hosts := serverHosts(c)
	a, err := certs.NewAuthority(dir, "Sheepdog CA", valid)
	if err != nil {
		return err
	}
	if err := a.Issue(dir, certs.Server, hosts[0], hosts, valid); err != nil {
		return err
	}
	if err := a.Issue(dir, certs.Client, c.String("client"), nil, valid); err != nil {
		return err
	}
	s.printf("Made an authority, a certificate for the server %s and one for the client %s in %s.\n\n", strings.Join(hosts, ", "), c.String("client"), dir)
	s.printf("A server:        sheep daemon --nbd HOST --nbd-tls require --nbd-tls-dir %s\n", dir)
	s.printf("A client:        nbdinfo 'nbds://%s/NAME?tls-certificates=%s'\n", hosts[0], dir)
	s.printf("                 qemu ... -object tls-creds-x509,id=t,endpoint=client,dir=%s -drive driver=nbd,host=%s,export=NAME,tls-creds=t\n", dir, hosts[0])
	s.printf("Another server:  sheep tls server OUT-DIR --dir %s --host NAME,ADDRESS\n", dir)
	s.printf("Another client:  sheep tls client NAME OUT-DIR --dir %s\n", dir)
	s.printf("Keep ca-key.pem away from servers and clients: who has it can make certificates.\n")
	return nil
}

func (s *shell) tlsServer(c *cli.Context) error {
	if err := arguments(c, "OUT-DIR"); err != nil {
		return err
	}
	hosts := serverHosts(c)
	return s.issue(c, c.Args().First(), certs.Server, hosts[0], hosts)
}

func (s *shell) tlsClient(c *cli.Context) error {
	if err := arguments(c, "NAME", "OUT-DIR"); err != nil {
		return err
	}
	return s.issue(c, c.Args().Get(1), certs.Client, c.Args().First(), nil)
}

func (s *shell) issue(c *cli.Context, out, kind, name string, hosts []string) error {
	valid, err := validDays(c)
	if err != nil {
		return err
	}
	a, err := certs.OpenAuthority(c.String("dir"))
	if err != nil {
		return err
	}
	if err := a.Issue(out, kind, name, hosts, valid); err != nil {
		return err
	}
	s.printf("Made a certificate for the %s %s in %s.\n", kind, name, out)
	return nil
}

func (s *shell) tlsShow(c *cli.Context) error {
	dir, err := dirArgument(c)
	if err != nil {
		return err
	}
	list, err := certs.Show(dir)
	if err != nil {
		return err
	}
	if style(c) == output.JSON {
		return output.Value(s.out, list)
	}
	for _, i := range list {
		hosts := strings.Join(i.Hosts, ",")
		if style(c) == output.Raw {
			s.printf("%s %d %q %q %q\n", i.File, i.Until.Unix(), i.Name, hosts, i.Trust)
			continue
		}
		text := fmt.Sprintf("%-16s until %s  %s", i.File, i.Until.Local().Format("2006-01-02"), i.Name)
		if hosts != "" && hosts != i.Name {
			text += " (" + hosts + ")"
		}
		if i.Trust != "ok" {
			text += "  " + strings.ToUpper(i.Trust)
		}
		s.printf("%s\n", text)
	}
	return nil
}
