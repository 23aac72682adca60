//! What texts the chain takes: names, places, addresses. Pure, and without an allocation that a
//! caller sizes.
//!
//! Each function says whether the text is well formed; its length is checked where the error for it
//! is known.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// A farm's name: letters, digits, `-` and `_`.
pub(crate) fn farm_name(name: &[u8]) -> bool {
    name.iter().all(|byte| is_name_byte(*byte))
}

/// Relays, joined by `_`: host names without an empty label, and never a port.
///
/// TFChain refuses a first label of one character too (`r.grid.tf`), and so do we.
pub(crate) fn relay(relay: &[u8]) -> bool {
    let label_bytes = relay.iter().all(|byte| is_name_byte(*byte) || *byte == b'.');
    let first_label = relay.split(|byte| *byte == b'.').next().map_or(0, <[u8]>::len);
    let labels = relay.split(|byte| matches!(byte, b'.' | b'_')).all(|label| !label.is_empty());
    label_bytes && labels && first_label > 1
}

/// A network interface's name.
pub(crate) fn interface_name(name: &[u8]) -> bool {
    name.iter().all(|byte| is_name_byte(*byte) || matches!(byte, b'.' | b':'))
}

/// A hardware address: six pairs of hexadecimal digits with colons between.
pub(crate) fn mac(mac: &[u8]) -> bool {
    let mut pairs = 0;
    let well_formed = mac.split(|byte| *byte == b':').all(|pair| {
        pairs += 1;
        pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit)
    });
    well_formed && pairs == 6
}

/// An address of an interface, with or without a prefix length.
pub(crate) fn interface_ip(ip: &[u8]) -> bool {
    let Ok(text) = core::str::from_utf8(ip) else { return false };
    match text.split_once('/') {
        None => text.parse::<IpAddr>().is_ok(),
        Some((address, prefix)) => match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => prefix.parse::<u8>().is_ok_and(|bits| bits <= 32),
            Ok(IpAddr::V6(_)) => prefix.parse::<u8>().is_ok_and(|bits| bits <= 128),
            Err(_) => false,
        },
    }
}

/// A city or country: UTF-8 without control characters.
pub(crate) fn place(name: &[u8]) -> bool {
    core::str::from_utf8(name).is_ok_and(|name| !name.chars().any(char::is_control))
}

/// Degrees, at most `most` to either side.
pub(crate) fn degrees(text: &[u8], most: f64) -> bool {
    core::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .is_some_and(|degrees| degrees.is_finite() && degrees.abs() <= most)
}

/// A serial number: printable ASCII.
pub(crate) fn serial(serial: &[u8]) -> bool {
    serial.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
}

/// A public IPv4 address with its prefix length, and a gateway in the same network.
pub(crate) fn ip4_with_gateway(ip: &[u8], gateway: &[u8]) -> Result<(), PublicAddressError> {
    let (address, bits) =
        cidr::<Ipv4Addr>(ip).filter(|(_, bits)| *bits <= 32).ok_or(PublicAddressError::Address)?;
    let gateway = parse::<Ipv4Addr>(gateway).ok_or(PublicAddressError::Gateway)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    let same = u32::from(address) & mask == u32::from(gateway) & mask;
    if same && address != gateway { Ok(()) } else { Err(PublicAddressError::Gateway) }
}

/// A public IPv6 address with its prefix length, and a gateway. A gateway outside the network is
/// common (`fe80::1`), so it need only be an address.
pub(crate) fn ip6_with_gateway(ip: &[u8], gateway: &[u8]) -> Result<(), PublicAddressError> {
    cidr::<Ipv6Addr>(ip).filter(|(_, bits)| *bits <= 128).ok_or(PublicAddressError::Address)?;
    parse::<Ipv6Addr>(gateway).ok_or(PublicAddressError::Gateway)?;
    Ok(())
}

/// A domain: at least two labels of letters, digits and `-`.
pub(crate) fn domain(domain: &[u8]) -> bool {
    let mut labels = 0;
    let well_formed = domain.split(|byte| *byte == b'.').all(|label| {
        labels += 1;
        (1..=63).contains(&label.len())
            && label.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && label.first() != Some(&b'-')
            && label.last() != Some(&b'-')
    });
    well_formed && labels >= 2
}

/// Which half of a public address is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PublicAddressError {
    /// The address.
    Address,
    /// Its gateway.
    Gateway,
}

fn parse<A: core::str::FromStr>(bytes: &[u8]) -> Option<A> {
    core::str::from_utf8(bytes).ok()?.parse().ok()
}

fn cidr<A: core::str::FromStr>(bytes: &[u8]) -> Option<(A, u8)> {
    let (address, bits) = core::str::from_utf8(bytes).ok()?.split_once('/')?;
    Some((address.parse().ok()?, bits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_are_host_names_joined_by_underscores() {
        for good in [&b"relay.grid.tf"[..], b"relay.grid.tf_relay.02.grid.tf", b"localhost"] {
            assert!(relay(good), "{}", String::from_utf8_lossy(good));
        }
        for bad in
            [&b""[..], b".grid.tf", b"relay..tf", b"relay.grid.tf.", b"relay:80", b"r.grid.tf"]
        {
            assert!(!relay(bad), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_gateway_is_in_the_network_of_its_address() {
        assert_eq!(ip4_with_gateway(b"185.206.122.33/24", b"185.206.122.1"), Ok(()));
        assert_eq!(
            ip4_with_gateway(b"185.206.122.33", b"185.206.122.1"),
            Err(PublicAddressError::Address)
        );
        assert_eq!(
            ip4_with_gateway(b"185.206.122.33/33", b"185.206.122.1"),
            Err(PublicAddressError::Address)
        );
        assert_eq!(
            ip4_with_gateway(b"185.206.122.33/24", b"185.206.123.1"),
            Err(PublicAddressError::Gateway)
        );
        assert_eq!(
            ip4_with_gateway(b"185.206.122.1/0", b"185.206.122.1"),
            Err(PublicAddressError::Gateway)
        );
        assert_eq!(ip6_with_gateway(b"2a10:b600::5/64", b"fe80::1"), Ok(()));
    }

    #[test]
    fn addresses_coordinates_and_names_are_read() {
        assert!(mac(b"00:16:3e:5e:6c:00") && !mac(b"00:16:3e:5e:6c") && !mac(b"00:16:3e:5e:6c:0g"));
        assert!(interface_ip(b"10.0.0.2/24") && interface_ip(b"fe80::1") && !interface_ip(b"10.0"));
        assert!(degrees(b"51.05", 90.0) && !degrees(b"90.5", 90.0) && !degrees(b"NaN", 90.0));
        assert!(domain(b"gent01.grid.tf") && !domain(b"localhost") && !domain(b"-a.tf"));
        assert!(place("Zürich".as_bytes()) && !place(b"\xff") && !place(b"a\nb"));
    }
}
