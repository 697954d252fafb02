package guest

import (
	"bytes"
	"fmt"
)

// Modes of archive members.
const (
	dirMode     = 0o040755
	fileMode    = 0o100644
	programMode = 0o100755
)

// cpio is an archive in the "newc" form, which is what the kernel unpacks as its first root. Everything in it is root's.
type cpio struct {
	data  bytes.Buffer
	inode int
}

// add appends a member. A directory comes before what is in it.
func (c *cpio) add(name string, mode int, data []byte) {
	c.inode++
	const owner, group, links, changed, device = 0, 0, 1, 0, 0
	fmt.Fprintf(&c.data, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", c.inode, mode, owner, group, links,
		changed, len(data), device, device, device, device, len(name)+1, 0)
	c.data.WriteString(name)
	c.data.WriteByte(0)
	c.pad()
	c.data.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.data.Len()%4 != 0 {
		c.data.WriteByte(0)
	}
}

// end closes the archive and returns it.
func (c *cpio) end() []byte {
	c.add("TRAILER!!!", 0, nil)
	return c.data.Bytes()
}
