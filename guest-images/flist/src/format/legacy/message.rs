//! Cap'n Proto messages, as far as legacy images need them: structs, text, data, lists of structs.
//!
//! Source: "Encoding Spec" at capnproto.org, unpacked stream framing. Messages are hostile, so every
//! access is checked:
//!
//! - a message has at most [`SEGMENT_COUNT_MAX`] segments, and they must fit its bytes;
//! - pointers nest at most [`DEPTH_MAX`] deep;
//! - a traversal budget of as many words as the message holds (plus a little) stops pointers that
//!   share one target, and lists whose elements take no space.
//!
//! A field beyond the end of its struct reads as zero and a null pointer as empty, which is how the
//! format lets old and new schemas meet. Capabilities are refused: files have none.

use std::cell::Cell;

/// Most segments of one message.
const SEGMENT_COUNT_MAX: usize = 512;
/// Deepest nesting of pointers. A directory's deepest field stands at 7.
const DEPTH_MAX: u8 = 16;
/// Bytes in a word.
const WORD: usize = 8;
/// Words that any message may traverse beyond its own size; null lists and empty structs count 1.
const TRAVERSAL_FLOOR: u64 = 64;

/// Why a message can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MessageError {
    /// The segment table does not fit the message's bytes.
    #[error("segment table does not fit the message")]
    Framing,
    /// A pointer or list reaches out of its segment.
    #[error("pointer out of bounds")]
    Bounds,
    /// A pointer of another kind than the field has, or a capability.
    #[error("pointer of the wrong kind")]
    Kind,
    /// More than [`DEPTH_MAX`] pointers deep.
    #[error("pointers nest too deep")]
    Depth,
    /// The same words are used again and again.
    #[error("traverses more than its own size")]
    Traversal,
    /// Text without the NUL that ends it.
    #[error("text without its end")]
    Text,
}

type Result<T> = std::result::Result<T, MessageError>;

/// A framed message.
pub(super) struct Message<'a> {
    segments: Vec<&'a [u8]>,
    words_left: Cell<u64>,
}

/// A struct in a message.
#[derive(Clone, Copy)]
pub(super) struct Struct<'m, 'a> {
    message: &'m Message<'a>,
    segment: usize,
    data: &'a [u8],
    /// Word in the segment where the pointers begin.
    pointers: usize,
    pointer_count: usize,
    depth: u8,
}

/// A list of structs.
pub(super) struct StructList<'m, 'a> {
    message: &'m Message<'a>,
    segment: usize,
    /// Byte in the segment where the elements begin.
    start: usize,
    count: usize,
    data_size: usize,
    pointer_count: usize,
    depth: u8,
}

/// A pointer that is not null, with far pointers followed.
struct Target {
    segment: usize,
    /// Word where the content begins.
    word: usize,
    /// The pointer that tells kind and size.
    pointer: u64,
}

/// What a list pointer says: where its bytes begin, and how many elements of which kind.
struct List {
    segment: usize,
    word: usize,
    kind: u64,
    count: usize,
}

impl<'a> Message<'a> {
    /// Reads the segment table.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self> {
        let count = u32_at(bytes, 0).and_then(|last| usize::try_from(last).ok());
        let count = count.and_then(|last| last.checked_add(1)).ok_or(MessageError::Framing)?;
        if count > SEGMENT_COUNT_MAX {
            return Err(MessageError::Framing);
        }
        // A count and a size for each segment, padded to a whole word.
        let table_size = (count / 2 + 1) * WORD;
        let mut rest = bytes.get(table_size..).ok_or(MessageError::Framing)?;
        let mut segments = Vec::with_capacity(count);
        for number in 0..count {
            let words = u32_at(bytes, 4 + 4 * number).ok_or(MessageError::Framing)?;
            let size = usize::try_from(words).ok().and_then(|words| words.checked_mul(WORD));
            let (segment, after) =
                size.and_then(|size| rest.split_at_checked(size)).ok_or(MessageError::Framing)?;
            segments.push(segment);
            rest = after;
        }
        let words_left = Cell::new((bytes.len() / WORD) as u64 + TRAVERSAL_FLOOR);
        Ok(Self { segments, words_left })
    }

    /// The root struct.
    pub(super) fn root(&self) -> Result<Struct<'_, 'a>> {
        self.struct_at(0, 0, DEPTH_MAX)
    }

    fn word(&self, segment: usize, word: usize) -> Result<u64> {
        let bytes = self.bytes(segment, word, WORD)?;
        let bytes: [u8; WORD] = bytes.try_into().map_err(|_| MessageError::Bounds)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// `size` bytes from `word` on.
    fn bytes(&self, segment: usize, word: usize, size: usize) -> Result<&'a [u8]> {
        let segment = self.segments.get(segment).ok_or(MessageError::Bounds)?;
        let start = word.checked_mul(WORD).ok_or(MessageError::Bounds)?;
        let end = start.checked_add(size).ok_or(MessageError::Bounds)?;
        segment.get(start..end).ok_or(MessageError::Bounds)
    }

    fn spend(&self, bytes: usize) -> Result<()> {
        let words = (bytes.div_ceil(WORD) as u64).max(1);
        let left = self.words_left.get().checked_sub(words).ok_or(MessageError::Traversal)?;
        self.words_left.set(left);
        Ok(())
    }

    /// The pointer at `word`, if it is not null.
    fn target(&self, segment: usize, word: usize) -> Result<Option<Target>> {
        let pointer = self.word(segment, word)?;
        if pointer == 0 {
            return Ok(None);
        }
        if pointer & 3 != 2 {
            return near(segment, word, pointer).map(Some);
        }
        let (pad_segment, pad) = far(pointer)?;
        let landing = self.word(pad_segment, pad)?;
        if pointer & 4 == 0 {
            // One word: the pointer itself, which must not be far again.
            return if landing == 0 { Ok(None) } else { near(pad_segment, pad, landing).map(Some) };
        }
        // Two words: where the content is, and what it is.
        if landing & 7 != 2 {
            return Err(MessageError::Kind);
        }
        let (segment, word) = far(landing)?;
        let tag = self.word(pad_segment, pad + 1)?;
        Ok(Some(Target { segment, word, pointer: tag }))
    }

    /// The struct that the pointer at `word` names; an empty one for null.
    fn struct_at(&self, segment: usize, word: usize, depth: u8) -> Result<Struct<'_, 'a>> {
        let depth = depth.checked_sub(1).ok_or(MessageError::Depth)?;
        let Some(target) = self.target(segment, word)? else {
            self.spend(0)?;
            let (data, pointers, pointer_count) = (&[][..], 0, 0);
            return Ok(Struct { message: self, segment, data, pointers, pointer_count, depth });
        };
        if target.pointer & 3 != 0 {
            return Err(MessageError::Kind);
        }
        let (data_words, pointer_count) = struct_size(target.pointer);
        self.bytes(target.segment, target.word, (data_words + pointer_count) * WORD)?;
        self.spend((data_words + pointer_count) * WORD)?;
        Ok(Struct {
            message: self,
            segment: target.segment,
            data: self.bytes(target.segment, target.word, data_words * WORD)?,
            pointers: target.word + data_words,
            pointer_count,
            depth,
        })
    }

    fn list_at(&self, segment: usize, word: usize) -> Result<Option<List>> {
        let Some(target) = self.target(segment, word)? else { return Ok(None) };
        if target.pointer & 3 != 1 {
            return Err(MessageError::Kind);
        }
        let kind = (target.pointer >> 32) & 7;
        let count = usize::try_from(target.pointer >> 35).map_err(|_| MessageError::Bounds)?;
        Ok(Some(List { segment: target.segment, word: target.word, kind, count }))
    }

    /// A list of bytes; empty for null.
    fn byte_list(&self, segment: usize, word: usize) -> Result<&'a [u8]> {
        let Some(list) = self.list_at(segment, word)? else { return Ok(&[]) };
        if list.kind != 2 {
            return Err(MessageError::Kind);
        }
        self.spend(list.count)?;
        self.bytes(list.segment, list.word, list.count)
    }

    /// A list of structs; empty for null. Lists of plain values (but bits) count as structs with one
    /// field, as the spec asks.
    fn struct_list(&self, segment: usize, word: usize, depth: u8) -> Result<StructList<'_, 'a>> {
        let depth = depth.checked_sub(1).ok_or(MessageError::Depth)?;
        let mut found = StructList {
            message: self,
            segment,
            start: 0,
            count: 0,
            data_size: 0,
            pointer_count: 0,
            depth,
        };
        let Some(list) = self.list_at(segment, word)? else { return Ok(found) };
        found.segment = list.segment;
        found.count = list.count;
        let mut first_word = list.word;
        match list.kind {
            0 => {}
            2 => found.data_size = 1,
            3 => found.data_size = 2,
            4 => found.data_size = 4,
            5 => found.data_size = 8,
            6 => found.pointer_count = 1,
            7 => {
                let tag = self.word(list.segment, list.word)?;
                if tag & 3 != 0 {
                    return Err(MessageError::Kind);
                }
                let (data_words, pointer_count) = struct_size(tag);
                found.data_size = data_words * WORD;
                found.pointer_count = pointer_count;
                found.count =
                    usize::try_from((tag & 0xffff_ffff) >> 2).map_err(|_| MessageError::Bounds)?;
                first_word += 1;
                if found.count.checked_mul(data_words + pointer_count) != Some(list.count) {
                    return Err(MessageError::Bounds);
                }
            }
            _ => return Err(MessageError::Kind),
        }
        let size = found.count.checked_mul(found.stride()).ok_or(MessageError::Bounds)?;
        self.bytes(found.segment, first_word, size)?;
        // An element without any bytes costs a word too.
        self.spend(size.max(found.count.saturating_mul(WORD)))?;
        found.start = first_word * WORD;
        Ok(found)
    }
}

impl<'m, 'a> Struct<'m, 'a> {
    /// The 16 bits at `offset` bytes.
    pub(super) fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.field(offset))
    }

    /// The 32 bits at `offset` bytes.
    pub(super) fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.field(offset))
    }

    /// The 64 bits at `offset` bytes.
    pub(super) fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.field(offset))
    }

    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let bytes = self.data.get(offset..).and_then(|bytes| bytes.first_chunk::<N>());
        bytes.copied().unwrap_or([0; N])
    }

    /// Pointer `index` as data.
    pub(super) fn data(&self, index: usize) -> Result<&'a [u8]> {
        match self.pointer(index)? {
            Some(word) => self.message.byte_list(self.segment, word),
            None => Ok(&[]),
        }
    }

    /// Pointer `index` as text, without its NUL. Whether it is UTF-8 is not asked.
    pub(super) fn text(&self, index: usize) -> Result<&'a [u8]> {
        match self.data(index)?.split_last() {
            None => Ok(&[]),
            Some((0, text)) => Ok(text),
            Some(_) => Err(MessageError::Text),
        }
    }

    /// Pointer `index` as a struct.
    pub(super) fn structure(&self, index: usize) -> Result<Self> {
        match self.pointer(index)? {
            Some(word) => self.message.struct_at(self.segment, word, self.depth),
            None => Ok(Self { data: &[], pointer_count: 0, ..*self }),
        }
    }

    /// Pointer `index` as a list of structs.
    pub(super) fn list(&self, index: usize) -> Result<StructList<'m, 'a>> {
        match self.pointer(index)? {
            Some(word) => self.message.struct_list(self.segment, word, self.depth),
            None => Ok(StructList {
                message: self.message,
                segment: self.segment,
                start: 0,
                count: 0,
                data_size: 0,
                pointer_count: 0,
                depth: self.depth,
            }),
        }
    }

    /// Word of pointer `index`; none if the struct was written without it.
    fn pointer(&self, index: usize) -> Result<Option<usize>> {
        if index >= self.pointer_count {
            return Ok(None);
        }
        self.pointers.checked_add(index).map(Some).ok_or(MessageError::Bounds)
    }
}

impl<'m, 'a> StructList<'m, 'a> {
    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The elements in order. Their bounds were checked with the list's.
    pub(super) fn iter(&self) -> impl Iterator<Item = Result<Struct<'m, 'a>>> + '_ {
        (0..self.count).map(|index| self.element(index))
    }

    fn element(&self, index: usize) -> Result<Struct<'m, 'a>> {
        let start = index.checked_mul(self.stride()).and_then(|at| at.checked_add(self.start));
        let start = start.ok_or(MessageError::Bounds)?;
        let segment = self.message.segments.get(self.segment).ok_or(MessageError::Bounds)?;
        let data = start.checked_add(self.data_size).and_then(|end| segment.get(start..end));
        Ok(Struct {
            message: self.message,
            segment: self.segment,
            data: data.ok_or(MessageError::Bounds)?,
            // Elements with pointers begin at whole words, and so do their pointers.
            pointers: (start + self.data_size) / WORD,
            pointer_count: self.pointer_count,
            depth: self.depth,
        })
    }

    /// Bytes from one element to the next.
    fn stride(&self) -> usize {
        self.data_size + self.pointer_count * WORD
    }
}

/// Data and pointer words of a struct pointer or a composite list's tag.
fn struct_size(pointer: u64) -> (usize, usize) {
    (((pointer >> 32) & 0xffff) as usize, (pointer >> 48) as usize)
}

/// A struct or list pointer at `word`: its content is relative to the word after it.
fn near(segment: usize, word: usize, pointer: u64) -> Result<Target> {
    if pointer & 3 > 1 {
        return Err(MessageError::Kind);
    }
    let low = u32::try_from(pointer & 0xffff_ffff).map_err(|_| MessageError::Bounds)?;
    let offset = isize::try_from(low.cast_signed() >> 2).map_err(|_| MessageError::Bounds)?;
    let word = word.checked_add(1).and_then(|next| next.checked_add_signed(offset));
    Ok(Target { segment, word: word.ok_or(MessageError::Bounds)?, pointer })
}

/// Segment and word that a far pointer names.
fn far(pointer: u64) -> Result<(usize, usize)> {
    let segment = usize::try_from(pointer >> 32).map_err(|_| MessageError::Bounds)?;
    let word = usize::try_from((pointer & 0xffff_ffff) >> 3).map_err(|_| MessageError::Bounds)?;
    Ok((segment, word))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(segments: &[&[u64]]) -> Vec<u8> {
        let count = u32::try_from(segments.len()).unwrap();
        let mut bytes = (count - 1).to_le_bytes().to_vec();
        for segment in segments {
            bytes.extend(u32::try_from(segment.len()).unwrap().to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(segments.iter().flat_map(|s| s.iter()).flat_map(|word| word.to_le_bytes()));
        bytes
    }

    const fn struct_pointer(offset: i32, data: u64, pointers: u64) -> u64 {
        ((offset << 2).cast_unsigned() as u64) | (data << 32) | (pointers << 48)
    }

    const fn list_pointer(offset: i32, kind: u64, count: u64) -> u64 {
        ((offset << 2).cast_unsigned() as u64) | 1 | (kind << 32) | (count << 35)
    }

    const fn far_pointer(segment: u64, word: u64, double: bool) -> u64 {
        2 | if double { 4 } else { 0 } | (word << 3) | (segment << 32)
    }

    const HELLO: u64 = u64::from_le_bytes(*b"hello\0\0\0");

    #[test]
    fn fields_and_text() {
        let words = [struct_pointer(0, 1, 1), 0x0007_0006_0005_0004, list_pointer(0, 2, 6), HELLO];
        let bytes = framed(&[&words]);
        let message = Message::new(&bytes).unwrap();
        let root = message.root().unwrap();
        assert_eq!((root.u16(2), root.u32(4), root.u64(0)), (5, 0x0007_0006, words[1]));
        assert_eq!((root.u16(7), root.u64(8), root.u64(usize::MAX)), (0, 0, 0), "beyond its end");
        assert_eq!(root.text(0).unwrap(), b"hello");
        assert_eq!(root.text(1).unwrap(), b"", "a pointer it was written without");
        assert_eq!(root.list(1).unwrap().len(), 0);
    }

    #[test]
    fn far_pointers_single_and_double() {
        let first = [far_pointer(1, 0, false)];
        let second = [
            struct_pointer(0, 0, 1),
            far_pointer(2, 0, true), // the struct's pointer: double far
        ];
        let third = [far_pointer(3, 1, false), list_pointer(0, 2, 6)];
        let fourth = [0, HELLO];
        let bytes = framed(&[&first, &second, &third, &fourth]);
        let message = Message::new(&bytes).unwrap();
        assert_eq!(message.root().unwrap().text(0).unwrap(), b"hello");
    }

    #[test]
    fn composite_and_plain_lists_of_structs() {
        let words = [
            struct_pointer(0, 0, 2),
            list_pointer(1, 7, 4),
            list_pointer(5, 5, 2),
            struct_pointer(2, 1, 1), // tag: 2 elements
            11,
            list_pointer(2, 2, 6),
            12,
            0,
            HELLO,
            21,
            22,
        ];
        let mut words = words.to_vec();
        words[2] = list_pointer(6, 5, 2);
        let bytes = framed(&[&words]);
        let message = Message::new(&bytes).unwrap();
        let root = message.root().unwrap();
        let list = root.list(0).unwrap();
        let found: Vec<_> = list
            .iter()
            .map(|element| element.map(|e| (e.u64(0), e.text(0).unwrap().to_vec())).unwrap())
            .collect();
        assert_eq!(found, [(11, b"hello".to_vec()), (12, Vec::new())]);
        let plain: Vec<_> =
            root.list(1).unwrap().iter().map(|element| element.unwrap().u64(0)).collect();
        assert_eq!(plain, [21, 22]);
    }

    fn root_error(segments: &[&[u64]]) -> MessageError {
        let bytes = framed(segments);
        let message = Message::new(&bytes).unwrap();
        match message.root() {
            Err(error) => error,
            Ok(root) => root.text(0).err().or_else(|| root.list(0).err()).unwrap(),
        }
    }

    #[test]
    fn hostile_pointers_are_refused() {
        assert_eq!(root_error(&[&[struct_pointer(1, 1, 0)]]), MessageError::Bounds);
        assert_eq!(root_error(&[&[struct_pointer(-9, 1, 0)]]), MessageError::Bounds);
        assert_eq!(root_error(&[&[far_pointer(9, 0, false)]]), MessageError::Bounds);
        assert_eq!(root_error(&[&[far_pointer(0, 0, false)]]), MessageError::Kind, "far to far");
        assert_eq!(root_error(&[&[3]]), MessageError::Kind, "a capability");
        assert_eq!(
            root_error(&[&[struct_pointer(0, 0, 1), list_pointer(0, 2, 9)]]),
            MessageError::Bounds
        );
        let unended = [struct_pointer(0, 0, 1), list_pointer(0, 2, 5), HELLO];
        let bytes = framed(&[&unended]);
        let message = Message::new(&bytes).unwrap();
        assert_eq!(message.root().unwrap().text(0), Err(MessageError::Text));
    }

    #[test]
    fn amplification_is_refused() {
        // 2^28 elements that take no bytes.
        let words = [struct_pointer(0, 0, 1), list_pointer(0, 7, 0), struct_pointer(1 << 28, 0, 0)];
        let bytes = framed(&[&words]);
        let message = Message::new(&bytes).unwrap();
        assert_eq!(message.root().unwrap().list(0).err(), Some(MessageError::Traversal));
        let words = [struct_pointer(0, 0, 1), list_pointer(0, 0, 1 << 28)];
        let bytes = framed(&[&words]);
        let message = Message::new(&bytes).unwrap();
        assert_eq!(message.root().unwrap().list(0).err(), Some(MessageError::Traversal));
        // A struct that points at itself.
        let words = [struct_pointer(-1, 0, 1)];
        let bytes = framed(&[&words]);
        let message = Message::new(&bytes).unwrap();
        let mut next = message.root();
        for _ in 0..DEPTH_MAX {
            next = next.and_then(|structure| structure.structure(0));
        }
        assert_eq!(next.err(), Some(MessageError::Depth));
    }

    #[test]
    fn no_truncation_or_flipped_byte_panics() {
        let words =
            [struct_pointer(0, 1, 1), 7, list_pointer(0, 7, 2), struct_pointer(1, 1, 1), 1, 0];
        let bytes = framed(&[&words]);
        let visit = |bytes: &[u8]| {
            let Ok(message) = Message::new(bytes) else { return };
            let Ok(root) = message.root() else { return };
            let _ = root.text(0);
            if let Ok(list) = root.list(0) {
                for element in list.iter().flatten() {
                    let _ = element.text(0);
                }
            }
        };
        for position in 0..bytes.len() {
            visit(&bytes[..position]);
            for value in [0, 1, 2, 3, 7, 0x7f, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[position] = value;
                visit(&bad);
            }
        }
    }
}
