package main

import (
	"net"
	"os"
)

// notifySystemd tells the service manager how it goes (sd_notify(3): READY=1, STOPPING=1), if one is listening.
func notifySystemd(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' { // the abstract namespace
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // nobody to tell
	}
	defer c.Close()
	c.Write([]byte(state))
}
