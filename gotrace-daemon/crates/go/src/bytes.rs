//! Checked reads of little-endian values from untrusted bytes. Each gives `None` outside of the data.

/// The byte at an offset.
pub(super) fn u8_at(data: &[u8], at: usize) -> Option<u8> {
    data.get(at).copied()
}

/// The 16-bit value at an offset.
pub(super) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

/// The 32-bit value at an offset.
pub(super) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

/// The 64-bit value at an offset.
pub(super) fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

/// The 64-bit value at an offset, as an index; `None` as well where it does not fit.
pub(super) fn index_at(data: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64_at(data, at)?).ok()
}

/// `len` bytes from an offset.
pub(super) fn slice(data: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    data.get(at..at.checked_add(len)?)
}

/// The bytes from an offset to the next zero byte, which must exist.
pub(super) fn cstr(data: &[u8], at: usize) -> Option<&[u8]> {
    let rest = data.get(at..)?;
    rest.get(..rest.iter().position(|&b| b == 0)?)
}

/// An unsigned varint of at most 32 bits, as Go's tables use; moves `at` behind it.
pub(super) fn uvarint(data: &[u8], at: &mut usize) -> Option<u32> {
    uvarint_of(|| {
        let byte = *data.get(*at)?;
        *at += 1;
        Some(byte)
    })
}

/// The same of bytes that come one by one.
pub(super) fn uvarint_of(mut next: impl FnMut() -> Option<u8>) -> Option<u32> {
    let mut value = 0u32;
    for shift in [0, 7, 14, 21, 28] {
        let byte = next()?;
        value |= u32::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stop_at_the_end() {
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(u64_at(&data, 0), Some(0x0807_0605_0403_0201));
        assert_eq!(u64_at(&data, 1), None);
        assert_eq!(u32_at(&data, 4), Some(0x0807_0605));
        assert_eq!(u32_at(&data, usize::MAX), None);
        assert_eq!(u16_at(&data, 7), None);
        assert_eq!(slice(&data, 4, usize::MAX), None);
        assert_eq!(cstr(b"ab\0c", 0), Some(&b"ab"[..]));
        assert_eq!(cstr(b"ab\0c", 3), None);
    }

    #[test]
    fn varints_are_bounded() {
        let mut at = 0;
        assert_eq!(uvarint(&[0xac, 0x02], &mut at), Some(300));
        assert_eq!(at, 2);
        at = 0;
        assert_eq!(uvarint(&[0xff; 16], &mut at), None);
        at = 0;
        assert_eq!(uvarint(&[0x80], &mut at), None);
    }
}
