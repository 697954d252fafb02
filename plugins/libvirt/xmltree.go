package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// node is an XML element, kept with everything that is not understood: a machine's description is edited, and what a
// newer libvirt put in it has to survive. Names are as written, prefix and all.
type node struct {
	name  string
	attrs []attr
	text  string // in front of the first child
	nodes []*node
}

type attr struct{ name, value string }

// mostDepth bounds what a hostile description makes the parser do.
const mostDepth = 64

// parseXML reads one element. Comments and white space between elements are dropped.
func parseXML(text string) (*node, error) {
	decoder := xml.NewDecoder(strings.NewReader(text))
	var root *node
	var path []*node
	for {
		token, err := decoder.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("parse xml: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			n := &node{name: rawName(t.Name)}
			for _, a := range t.Attr {
				n.attrs = append(n.attrs, attr{rawName(a.Name), a.Value})
			}
			switch {
			case len(path) > 0:
				parent := path[len(path)-1]
				parent.nodes = append(parent.nodes, n)
			case root == nil:
				root = n
			default:
				return nil, errors.New("parse xml: two roots")
			}
			if path = append(path, n); len(path) > mostDepth {
				return nil, errors.New("parse xml: too deep")
			}
		case xml.EndElement:
			if len(path) == 0 || path[len(path)-1].name != rawName(t.Name) {
				return nil, fmt.Errorf("parse xml: </%s> closes nothing", rawName(t.Name))
			}
			path = path[:len(path)-1]
		case xml.CharData:
			if len(path) > 0 && strings.TrimSpace(string(t)) != "" {
				path[len(path)-1].text += string(t)
			}
		}
	}
	if root == nil || len(path) > 0 {
		return nil, errors.New("parse xml: unexpected end")
	}
	return root, nil
}

func rawName(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

// element makes a node; attributes come as names and values in turn.
func element(name string, attrs ...string) *node {
	n := &node{name: name}
	for pair := range slices.Chunk(attrs, 2) {
		n.attrs = append(n.attrs, attr{pair[0], pair[1]})
	}
	return n
}

// with adds children and returns n.
func (n *node) with(children ...*node) *node {
	n.nodes = append(n.nodes, children...)
	return n
}

// withText sets the text and returns n.
func (n *node) withText(text string) *node {
	n.text = text
	return n
}

// String is the element as XML.
func (n *node) String() string {
	var b strings.Builder
	n.write(&b)
	return b.String()
}

func (n *node) write(b *strings.Builder) {
	b.WriteString("<" + n.name)
	for _, a := range n.attrs {
		b.WriteString(" " + a.name + `="`)
		_ = xml.EscapeText(b, []byte(a.value)) // a Builder does not fail
		b.WriteString(`"`)
	}
	if n.text == "" && len(n.nodes) == 0 {
		b.WriteString("/>")
		return
	}
	b.WriteString(">")
	_ = xml.EscapeText(b, []byte(n.text))
	for _, child := range n.nodes {
		child.write(b)
	}
	b.WriteString("</" + n.name + ">")
}

// at follows a path of names to the first such child, or nil. A nil node has none.
func (n *node) at(path ...string) *node {
	for _, name := range path {
		if n == nil {
			return nil
		}
		i := slices.IndexFunc(n.nodes, func(c *node) bool { return c.name == name })
		if i < 0 {
			return nil
		}
		n = n.nodes[i]
	}
	return n
}

// all are the children of a name.
func (n *node) all(name string) []*node {
	if n == nil {
		return nil
	}
	var found []*node
	for _, c := range n.nodes {
		if c.name == name {
			found = append(found, c)
		}
	}
	return found
}

// get is an attribute, or "".
func (n *node) get(name string) string {
	if n == nil {
		return ""
	}
	for _, a := range n.attrs {
		if a.name == name {
			return a.value
		}
	}
	return ""
}

// set sets an attribute.
func (n *node) set(name, value string) {
	for i, a := range n.attrs {
		if a.name == name {
			n.attrs[i].value = value
			return
		}
	}
	n.attrs = append(n.attrs, attr{name, value})
}

// unset removes attributes.
func (n *node) unset(names ...string) {
	n.attrs = slices.DeleteFunc(n.attrs, func(a attr) bool { return slices.Contains(names, a.name) })
}

// drop removes the children of some names.
func (n *node) drop(names ...string) {
	if n != nil {
		n.dropIf(func(c *node) bool { return slices.Contains(names, c.name) })
	}
}

func (n *node) dropIf(unwanted func(*node) bool) { n.nodes = slices.DeleteFunc(n.nodes, unwanted) }

// need is the first child of a name, made if there is none.
func (n *node) need(name string) *node {
	if c := n.at(name); c != nil {
		return c
	}
	c := element(name)
	n.nodes = append(n.nodes, c)
	return c
}

// words is the text without white space around it.
func (n *node) words() string {
	if n == nil {
		return ""
	}
	return strings.TrimSpace(n.text)
}
