//! What a driver asks for: a descriptor chain, read once and checked (virtio 1.3 §5.2.6).
//!
//! ```text
//!   device reads:   type u32 │ reserved u32 │ sector u64 │ data, or ranges of 16 bytes
//!   device writes:  data, if it is a read │ status u8
//! ```
//!
//! How the bytes are cut into descriptors is the driver's affair (§2.7.4.1): a header may be in
//! three pieces, or in one with its data. The status is the last byte that the device may write.
//!
//! A chain without room for header or status breaks the rules of the ring, and the device stops.
//! Whatever else is wrong is answered: with `VIRTIO_BLK_S_UNSUPP` if the device does not know it,
//! with `VIRTIO_BLK_S_IOERR` if it cannot be.

use virtio_bindings::virtio_blk as abi;

use crate::memory::{GuestAddress, Memory};
use crate::{Chain, QueueError, Segment};

/// Sectors are of 512 bytes, whatever the block size.
pub(super) const SECTOR_SIZE: u64 = 512;

/// The most ranges in one discard or write-zeroes request.
pub(super) const RANGES_MAX: u32 = 32;

/// The most sectors in one of these ranges: 1 GiB. It bounds how long the host is busy with one.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// The size of the serial number (§5.2.6): padded with zeroes, not necessarily ended by one.
pub(super) const SERIAL_SIZE: usize = 20;

const HEADER_SIZE: u32 = 16;
const RANGE_SIZE: u32 = 16;

/// What a disk and its driver have agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// In bytes; a multiple of the block size.
    pub(super) capacity: u64,
    pub(super) block_size: u32,
    pub(super) is_read_only: bool,
    pub(super) has_discard: bool,
    pub(super) has_write_zeroes: bool,
}

/// A request that can be served, or what to answer instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(Span),
    Write(Span),
    Flush,
    Identify,
    /// Its ranges are in [`Parts::ranges`].
    Discard,
    /// Its ranges are in [`Parts::ranges`].
    WriteZeroes,
    Refused(Status, &'static str),
}

/// A piece of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// One range of a discard or write-zeroes request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) may_unmap: bool,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What goes with a request; kept from one to the next, so that a busy queue allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// Where the data is, or goes to.
    pub(super) data: Vec<Segment>,
    pub(super) ranges: Vec<Range>,
}

/// Reads a request, and returns it with the place of its status.
///
/// # Errors
/// When the chain cannot hold a request.
pub(super) fn parse(
    chain: &Chain,
    memory: &Memory,
    rules: &Rules,
    parts: &mut Parts,
) -> Result<(Request, GuestAddress), QueueError> {
    parts.data.clear();
    parts.ranges.clear();
    let status = status_address(chain, memory)?;
    let readable = chain.readable(memory);
    let mut header = [0; HEADER_SIZE as usize];
    readable.read(0, &mut header, "a request header")?;
    let [kind, _, low, high] = words(header);
    let sector = u64::from(high) << 32 | u64::from(low);
    let (out_size, in_size) = (chain.readable_size() - HEADER_SIZE, chain.writable_size() - 1);
    let request = match kind {
        abi::VIRTIO_BLK_T_IN => {
            add_data(chain.writable(memory).segments(), 0, in_size, &mut parts.data);
            transfer(rules, sector, in_size).map(Request::Read)
        }
        abi::VIRTIO_BLK_T_OUT if rules.is_read_only => Err(READ_ONLY),
        abi::VIRTIO_BLK_T_OUT => {
            add_data(readable.segments(), HEADER_SIZE, out_size, &mut parts.data);
            transfer(rules, sector, out_size).map(Request::Write)
        }
        abi::VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        abi::VIRTIO_BLK_T_GET_ID => {
            add_data(chain.writable(memory).segments(), 0, in_size, &mut parts.data);
            Ok(Request::Identify)
        }
        abi::VIRTIO_BLK_T_DISCARD if rules.has_discard => {
            parse_ranges(chain, memory, rules, false, &mut parts.ranges)?.map(|()| Request::Discard)
        }
        abi::VIRTIO_BLK_T_WRITE_ZEROES if rules.has_write_zeroes => {
            let parsed = parse_ranges(chain, memory, rules, true, &mut parts.ranges)?;
            parsed.map(|()| Request::WriteZeroes)
        }
        _ => Err((Status::Unsupported, "a request of unknown type")),
    };
    Ok((request.unwrap_or_else(|(status, why)| Request::Refused(status, why)), status))
}

/// Why a request is refused, and what the driver is told.
type Refusal = (Status, &'static str);

const READ_ONLY: Refusal = (Status::IoError, "a write to a read-only disk");

fn status_address(chain: &Chain, memory: &Memory) -> Result<GuestAddress, QueueError> {
    let last = chain.writable(memory).segments().last();
    let last = last.ok_or_else(|| QueueError::Short {
        head: chain.head(),
        what: "a request status",
        wanted: 1,
        found: 0,
    })?;
    Ok(GuestAddress(last.address.0 + u64::from(last.size - 1)))
}

/// Adds `size` bytes of `segments`, from byte `skip` on.
fn add_data(segments: &[Segment], mut skip: u32, mut size: u32, data: &mut Vec<Segment>) {
    for segment in segments {
        let skipped = skip.min(segment.size);
        let taken = (segment.size - skipped).min(size);
        if taken > 0 {
            let address = GuestAddress(segment.address.0 + u64::from(skipped));
            data.push(Segment { address, size: taken });
        }
        skip -= skipped;
        size -= taken;
    }
}

/// Where a read or write of `size` bytes at `sector` goes.
fn transfer(rules: &Rules, sector: u64, size: u32) -> Result<Span, Refusal> {
    let offset = place(rules, sector, u64::from(size))?;
    Ok(Span { offset, size })
}

/// The offset of `size` bytes from `sector` on, all of them within the disk and whole blocks.
fn place(rules: &Rules, sector: u64, size: u64) -> Result<u64, Refusal> {
    let block = u64::from(rules.block_size);
    let offset = sector.checked_mul(SECTOR_SIZE);
    let offset =
        offset.filter(|offset| offset.checked_add(size).is_some_and(|end| end <= rules.capacity));
    let offset = offset.ok_or((Status::IoError, "a request beyond the end of the disk"))?;
    if !offset.is_multiple_of(block) || !size.is_multiple_of(block) {
        return Err((Status::IoError, "a request that is not of whole blocks"));
    }
    Ok(offset)
}

/// §5.2.6.2: any unknown flag, or `unmap` in a discard, is unsupported; a range outside the disk
/// or beyond the announced limits is an error.
fn parse_ranges(
    chain: &Chain,
    memory: &Memory,
    rules: &Rules,
    knows_unmap: bool,
    ranges: &mut Vec<Range>,
) -> Result<Result<(), Refusal>, QueueError> {
    if rules.is_read_only {
        return Ok(Err(READ_ONLY));
    }
    let size = chain.readable_size() - HEADER_SIZE;
    if size == 0 || !size.is_multiple_of(RANGE_SIZE) || size / RANGE_SIZE > RANGES_MAX {
        return Ok(Err((Status::IoError, "a list of ranges that is empty, ragged or too long")));
    }
    for index in 0..size / RANGE_SIZE {
        let mut bytes = [0; RANGE_SIZE as usize];
        let skip = HEADER_SIZE + index * RANGE_SIZE;
        chain.readable(memory).read(skip, &mut bytes, "a range")?;
        match parse_range(words(bytes), rules, knows_unmap) {
            Ok(range) if range.size == 0 => {}
            Ok(range) => ranges.push(range),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    Ok(Ok(()))
}

fn parse_range(words: [u32; 4], rules: &Rules, knows_unmap: bool) -> Result<Range, Refusal> {
    let [low, high, sectors, flags] = words;
    let known = if knows_unmap { abi::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
    if flags & !known != 0 {
        return Err((Status::Unsupported, "a range with unknown flags"));
    }
    if sectors > RANGE_SECTORS_MAX {
        return Err((Status::IoError, "a range of more sectors than announced"));
    }
    let size = u64::from(sectors) * SECTOR_SIZE;
    let offset = place(rules, u64::from(high) << 32 | u64::from(low), size)?;
    Ok(Range { offset, size, may_unmap: flags != 0 })
}

fn words(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        capacity: 64 << 10,
        block_size: 4096,
        is_read_only: false,
        has_discard: true,
        has_write_zeroes: true,
    };

    #[test]
    fn places_end_with_the_disk_and_do_not_wrap() {
        assert_eq!(place(&RULES, 0, 64 << 10), Ok(0));
        assert_eq!(place(&RULES, 128, 0), Ok(64 << 10));
        assert_eq!(place(&RULES, 120, 4096), Ok(60 << 10));
        for (sector, size) in [
            (120, 4097),
            (121, 4096),
            (129, 0),
            (u64::MAX, 0),
            (u64::MAX / 512, 4096),
            (u64::MAX / 512 + 1, 512),
            (1 << 55, 512),
            (0, u64::MAX),
        ] {
            let error = place(&RULES, sector, size).unwrap_err();
            assert_eq!(error, (Status::IoError, "a request beyond the end of the disk"));
        }
    }

    #[test]
    fn places_are_of_whole_blocks() {
        for (sector, size) in [(1, 4096), (0, 512), (8, 4095)] {
            let error = place(&RULES, sector, size).unwrap_err();
            assert_eq!(error, (Status::IoError, "a request that is not of whole blocks"));
        }
    }

    #[test]
    fn data_is_cut_out_of_segments() {
        let segment = |address, size| Segment { address: GuestAddress(address), size };
        let segments = [segment(100, 10), segment(200, 10), segment(300, 10)];
        let cut = |skip, size| {
            let mut data = Vec::new();
            add_data(&segments, skip, size, &mut data);
            data
        };
        assert_eq!(cut(0, 30), segments);
        assert_eq!(cut(16, 14), [segment(206, 4), segment(300, 10)]);
        assert_eq!(cut(20, 9), [segment(300, 9)]);
        assert_eq!(cut(3, 5), [segment(103, 5)]);
        assert!(cut(30, 0).is_empty());
    }
}
