package chunk

import "encoding/binary"

// SealBody seals a body as whoever has the keyring can, whatever it is.
func SealBody(k *Keyring, r Record, body []byte) ([]byte, error) {
	aead, err := k.derive(r.KeyNumber, chunkContext, r.ID[:])
	if err != nil {
		return nil, err
	}
	ad, nonce := associated(r), make([]byte, nonceSize)
	return aead.Seal(nonce, nonce, body, ad[:]), nil
}

// OpenBody is what lies behind the seal of a record, still compressed.
func OpenBody(k *Keyring, r Record) ([]byte, error) {
	aead, err := k.derive(r.KeyNumber, chunkContext, r.ID[:])
	if err != nil {
		return nil, err
	}
	ad := associated(r)
	return aead.Open(nil, r.Body[:nonceSize], r.Body[nonceSize:], ad[:])
}

// FrameWrap makes a wrap of any age file, with a right checksum.
func FrameWrap(f Fingerprint, file []byte) []byte {
	wrap := append(append([]byte(nil), wrapMagic[:]...), Format, 0, 0, 0)
	wrap = append(append(wrap, f[:]...), 0, 0, 0, 0)
	wrap = append(wrap, file...)
	binary.LittleEndian.PutUint32(wrap[wrapHeader-4:], wrapSum(wrap))
	return wrap
}
