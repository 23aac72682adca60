//! What travels in both queues: a header of 44 bytes, then payload (virtio 1.3 §5.10.6).
//!
//! Everything here comes from the guest and may be anything; a [`Header`] is only the local copy
//! of its bytes. What it means, and whether it may be believed, is the multiplexer's business.

/// The host's address (virtio 1.3 §5.10.4): `VMADDR_CID_HOST`.
pub(super) const HOST_CID: u64 = 2;
/// Bytes of a header on the wire.
pub(super) const HEADER_SIZE: u32 = 44;
/// The one kind of socket on offer: a stream of bytes.
pub(super) const STREAM: u16 = 1;
/// Flag of [`op::SHUTDOWN`]: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of [`op::SHUTDOWN`]: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both, which asks for a reset.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for: `VIRTIO_VSOCK_OP_*`.
pub(super) mod op {
    /// Asks for a connection.
    pub(in super::super) const REQUEST: u16 = 1;
    /// Accepts it.
    pub(in super::super) const RESPONSE: u16 = 2;
    /// There is no such connection, or no more.
    pub(in super::super) const RST: u16 = 3;
    /// No more will be sent, received, or both.
    pub(in super::super) const SHUTDOWN: u16 = 4;
    /// Carries payload.
    pub(in super::super) const RW: u16 = 5;
    /// Tells what there is room for.
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    /// Asks what there is room for.
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload that follow.
    pub(super) len: u32,
    /// `type` in the specification.
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// How large the sender's receive buffer is.
    pub(super) buf_alloc: u32,
    /// How many bytes have left that buffer since the connection began, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// The header in its wire form.
    pub(super) fn encode(&self) -> [u8; HEADER_SIZE as usize] {
        let mut bytes = [0; HEADER_SIZE as usize];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The header that `bytes` hold; any bytes are one.
    pub(super) fn decode(bytes: &[u8; HEADER_SIZE as usize]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// The reset that answers this packet, so that whoever sent it gives up at once. It comes from
    /// where the packet went, and is of its type: Linux looks for the socket by both.
    pub(super) const fn refusal(&self, guest_cid: u64) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: guest_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            op: op::RST,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

/// The `N` bytes of a field, so that nothing has to be unwrapped.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    /// virtio 1.3 §5.10.6: the order and width of the fields.
    #[test]
    fn a_header_is_laid_out_as_the_specification_says() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let bytes: Vec<u8> = (1..=44).collect();
        assert_eq!(header.encode().as_slice(), bytes);
        assert_eq!(Header::decode(&header.encode()), header);
    }
}
