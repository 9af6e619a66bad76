//! What a boot file needs of the machine that serves by it. The file may be good and written elsewhere: `boot check` looks
//! only if it is asked to, and a server always does, in the same words.

use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::SystemTime;

use goldwire_netboot::BindError;
use goldwire_netboot::http::TlsSettings;
use goldwire_stdx::Report;
use nix::unistd::User;

use super::serve::{Ids, StateFolder};
use super::{DhcpMode, Settings};

/// What a machine is to a boot file.
#[derive(Debug, Default)]
pub struct Here {
    /// What it lacks: nothing can be served.
    pub faults: Vec<Report>,
    /// What will not work although it is served.
    pub warnings: Vec<Report>,
}

/// All that this machine lacks for serving by these settings at this time.
pub fn check_here(settings: &Settings, now: SystemTime) -> Here {
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    let root = &settings.server.root;
    if let Err(error) = std::fs::read_dir(root) {
        faults.push(
            Report::from(error)
                .context(format!("open the folder {}", root.display()))
                .hint("make the boot tree's folder, or name another one as server.root in the boot file"),
        );
    }
    if let Some(user) = &settings.server.user
        && !matches!(User::from_name(user), Ok(Some(_)))
    {
        faults.push(
            Report::new(format!("there is no user {user}, whom the boot file names")).hint(format!(
                "make one: useradd --system --no-create-home --shell /usr/sbin/nologin {user}"
            )),
        );
    }
    let user = settings.server.user.as_ref().and_then(|user| User::from_name(user).ok().flatten());
    let owner = user.map(|user| Ids { user: user.uid.as_raw(), group: user.gid.as_raw() });
    faults.extend(StateFolder::check(settings, owner).err());
    let dhcp = match settings.dhcp.mode {
        DhcpMode::Off => &[][..],
        DhcpMode::Server | DhcpMode::Proxy => &settings.dhcp.interfaces[..],
    };
    for name in dhcp.iter().chain(&settings.dhcp6_interfaces) {
        if !Path::new("/sys/class/net").join(name).exists() {
            faults.push(Report::new(format!("there is no interface {name}, which the boot file names")).hint(
                "`ip -br link` shows this machine's interfaces; dhcp.interfaces and dhcp6.interfaces name some",
            ));
        }
    }
    if let Some(tls) = &settings.http.tls {
        let mut are_readable = true;
        for (key, path) in [("http.certificate", &tls.certificate), ("http.key", &tls.key)] {
            if let Err(error) = File::open(path) {
                are_readable = false;
                faults.push(
                    Report::from(error)
                        .context(format!("read {key}, {}", path.display()))
                        .hint("`goldwire boot certificate` makes one; who serves must be able to read it"),
                );
            }
        }
        let pair = TlsSettings { certificate: tls.certificate.clone(), key: tls.key.clone() };
        if are_readable {
            match pair.dates(now) {
                Ok(fault) => warnings.extend(fault.map(|fault| {
                    Report::new(fault).hint("`goldwire boot certificate` makes one from the same authority")
                })),
                Err(error) => faults.push(Report::from(BindError::Tls(error))),
            }
        }
    }
    let tls = settings.http.tls.iter().flat_map(|tls| &tls.listen);
    let listen =
        settings.http.listen.iter().chain(tls).chain(&settings.tftp.listen).chain(&settings.metrics_listen);
    let mut addresses: Vec<IpAddr> = listen.map(std::net::SocketAddr::ip).collect();
    addresses.sort();
    addresses.dedup();
    for address in addresses {
        if UdpSocket::bind((address, 0))
            .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
        {
            faults.push(
                Report::new(format!("no interface of this machine has the address {address}"))
                    .hint("name another one in the listen keys, or give this machine the address"),
            );
        }
    }
    Here { faults, warnings }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair that does not fit was found only when the ports were bound.
    #[test]
    fn a_certificate_is_looked_at_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[server]\nroot = \".\"\nstate = \"state\"\n[http]\nlisten = []\ntls-listen = \"127.0.0.1:0\"\n\
                    certificate = \"c.pem\"\nkey = \"k.pem\"\n[tftp]\nlisten = []\n[[member]]\nname = \"m\"\naddress = \"192.0.2.1\"\n";
        let settings = super::super::parse(text, &folder.path().join("boot.toml")).unwrap().settings;
        let make = || rcgen::generate_simple_self_signed(["m".to_owned()]).unwrap();
        let (own, other) = (make(), make());
        let told = |certificate: &str, key: &str| {
            std::fs::write(folder.path().join("c.pem"), certificate).unwrap();
            std::fs::write(folder.path().join("k.pem"), key).unwrap();
            check_here(&settings, SystemTime::now())
        };
        let good = told(&own.cert.pem(), &own.signing_key.serialize_pem());
        assert!(good.faults.is_empty() && good.warnings.is_empty(), "{good:#?}");
        let late = SystemTime::now() + std::time::Duration::from_hours(24 * 365 * 4000);
        let here = check_here(&settings, late);
        assert!(here.faults.is_empty() && here.warnings.len() == 1, "{here:#?}");
        let line = here.warnings[0].line();
        assert!(line.contains("c.pem: the certificate ended at "), "{line}");
        for (certificate, key) in [
            (own.cert.pem(), other.signing_key.serialize_pem()),
            (String::new(), own.signing_key.serialize_pem()),
            (own.cert.pem(), own.cert.pem()),
        ] {
            let faults = told(&certificate, &key).faults;
            assert!(faults.len() == 1 && faults[0].line().starts_with("prepare HTTPS: "), "{faults:#?}");
            assert!(!faults[0].hints.is_empty(), "{faults:#?}");
        }
    }

    #[test]
    fn each_fault_of_the_machine_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("state"), "").unwrap();
        let text = "[server]\nname = \"m\"\nstate = \"state\"\nroot = \"nowhere\"\nuser = \"nobody-of-that-name\"\n\
                    [http]\nlisten = [\"192.0.2.1:80\"]\ntls-listen = [\"0.0.0.0:443\"]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n\
                    [dhcp]\nmode = \"proxy\"\ninterfaces = [\"no-such0\", \"lo\"]\n[[member]]\nname = \"m\"\naddress = \"192.0.2.1\"\n";
        let settings = super::super::parse(text, &folder.path().join("boot.toml")).unwrap().settings;
        let faults: Vec<String> =
            check_here(&settings, SystemTime::now()).faults.iter().map(ToString::to_string).collect();
        for words in [
            "not a link to it or a file",
            "nowhere",
            "nobody-of-that-name",
            "no-such0",
            "c.pem",
            "k.pem",
            "192.0.2.1",
        ] {
            assert_eq!(
                faults.iter().filter(|fault| fault.contains(words)).count(),
                1,
                "{words}: {faults:#?}"
            );
        }
        assert_eq!(faults.len(), 7);
        assert!(faults.iter().all(|fault| fault.contains("hint: ")), "{faults:#?}");
    }
}
