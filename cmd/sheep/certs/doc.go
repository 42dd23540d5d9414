// Package certs is who may use the NBD ports: certificates, and the list of who may open what.
//
//	authority.go  makes a certificate authority, and certificates that it signs
//	show.go       what lies in a directory of them
//	load.go       the TLS configuration of a server, renewed when its files are
//	access.go     the list of who may open which export
//	security.go   all of it as flags, for sheep daemon and sheep-nbd; which addresses need it
//
// A directory has the names that QEMU (tls-creds-x509,dir=) and libnbd (tls-certificates=) look for, so that it can be given to them as it is:
//
//	ca-cert.pem                       whom to believe: on every machine
//	ca-key.pem                        signs more: keep it where certificates are made, away from servers
//	server-cert.pem  server-key.pem   on servers
//	client-cert.pem  client-key.pem   on clients
package certs
