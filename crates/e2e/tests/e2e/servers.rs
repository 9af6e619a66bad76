//! Two goldwire boot servers in the lab, which stand in for each other.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::lab::{Lab, Service};
use crate::marker::{bios_program, efi_program};
use crate::tool::Scene;

/// What the machines boot, and how DHCP is answered.
pub(crate) struct Wish {
    /// `server`, or `proxy` beside somebody else's.
    pub(crate) mode: &'static str,
    /// The keys of the profile that every device gets, and the tables behind it.
    pub(crate) profile: &'static str,
}

/// An iPXE script of the boot tree says `SCRIPT MARKER` and the address.
pub(crate) const SCRIPT: Wish = Wish { mode: "server", profile: "kernel = 'marker.ipxe'" };
/// The same with 6 MiB behind it, for a server that dies in the middle.
pub(crate) const BIG_SCRIPT: Wish = Wish { mode: "server", profile: "kernel = 'big.ipxe'" };
/// The same script, and UEFI's iPXE with 2 MiB behind it: more than a kernel sends on for a server that is dead.
pub(crate) const BIG_PROGRAM: Wish =
    Wish { mode: "server", profile: "kernel = 'marker.ipxe'\nipxe = { efi-x64 = 'big.efi' }" };
/// The same script, and boot media that are served.
pub(crate) const MEDIA: Wish = Wish { mode: "server", profile: "kernel = 'marker.ipxe'\n[media]" };
/// The same script, for who has a token.
pub(crate) const TOKEN: Wish = Wish { mode: "server", profile: "kernel = 'marker.ipxe'\ntoken = true" };
/// A plain file, which says `NBP MARKER` where BIOS runs it.
pub(crate) const PLAIN_FILE: Wish = Wish { mode: "server", profile: "file = 'ARDBP32.BIN'" };
/// A plain file, which says `EFI MARKER` where UEFI runs it.
pub(crate) const EFI_FILE: Wish = Wish { mode: "server", profile: "file = 'marker.efi'" };

/// boot1 on srv1 and boot2 on srv2. Each device's first member is boot1.
pub(crate) struct Servers {
    folder: PathBuf,
    boot1: Option<Service>,
    boot2: Option<Service>,
}

impl Servers {
    /// Writes the files and starts nothing.
    pub(crate) fn prepare(scene: &Scene, wish: &Wish) -> Self {
        let folder = scene.folder("boot");
        let root = scene.folder("boot/root");
        let marker = "#!ipxe\necho SCRIPT MARKER ${net0/ip}\nsleep 3600\n";
        fs::write(root.join("marker.ipxe"), marker).unwrap();
        let mut big = marker.as_bytes().to_vec();
        big.resize(6 << 20, b'#');
        fs::write(root.join("big.ipxe"), big).unwrap();
        let mut program = fs::read("/usr/lib/ipxe/snponly.efi").unwrap();
        program.resize(2 << 20, 0);
        fs::write(root.join("big.efi"), program).unwrap();
        fs::write(root.join("ARDBP32.BIN"), bios_program("NBP MARKER")).unwrap();
        efi_program(&folder, &root.join("marker.efi"), "EFI MARKER");
        let secret = folder.join("secret");
        fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        for number in 1..=2 {
            let state = scene.folder(&format!("boot/state{number}"));
            let file = format!(
                "default-profile = 'lab'\n\
                 [server]\nname = 'boot{number}'\nstate = '{state}'\nroot = '{root}'\nsecret-file = '{secret}'\n\
                 [dhcp]\nmode = '{mode}'\ninterfaces = ['eth0']\n\
                 [heartbeat]\nlisten = '0.0.0.0:6970'\n\
                 [[subnet]]\nnetwork = '10.77.0.0/24'\npools-of = {{ \
                 boot1 = '10.77.0.110-10.77.0.119', boot2 = '10.77.0.120-10.77.0.129' }}\n\
                 [[member]]\nname = 'boot1'\naddress = '10.77.0.1'\nheartbeat = '10.77.0.1:6970'\n\
                 [[member]]\nname = 'boot2'\naddress = '10.77.0.2'\nheartbeat = '10.77.0.2:6970'\n\
                 subnets = '10.99.0.0/16' # Not ours: it comes after all others.\n\
                 [profile.lab]\n{profile}\n",
                state = state.display(),
                root = root.display(),
                secret = secret.display(),
                mode = wish.mode,
                profile = wish.profile,
            );
            fs::write(folder.join(format!("boot{number}.toml")), file).unwrap();
        }
        Self { folder, boot1: None, boot2: None }
    }

    /// Starts both, and waits until each knows that the other lives.
    pub(crate) fn start(lab: &Lab, scene: &Scene, wish: &Wish) -> Self {
        let mut servers = Self::prepare(scene, wish);
        let (boot1, boot2) = (servers.start_one(lab, 1), servers.start_one(lab, 2));
        boot1.wait_for("member=\"boot2\" state=\"alive\"");
        boot2.wait_for("member=\"boot1\" state=\"alive\"");
        (servers.boot1, servers.boot2) = (Some(boot1), Some(boot2));
        servers
    }

    /// Starts the second one only: the first is dead all the time.
    pub(crate) fn start_second(lab: &Lab, scene: &Scene, wish: &Wish) -> Self {
        let mut servers = Self::prepare(scene, wish);
        servers.boot2 = Some(servers.start_one(lab, 2));
        servers
    }

    /// Starts one of them and waits until it serves.
    pub(crate) fn start_one(&self, lab: &Lab, number: u8) -> Service {
        let space = format!("srv{number}");
        let file = self.config(number);
        let service = lab.goldwire(&space, ["boot", "serve", "--config", file.to_str().unwrap()]);
        lab.wait_for_port(&space, 80);
        service
    }

    /// The boot file of a member.
    pub(crate) fn config(&self, number: u8) -> PathBuf {
        self.folder.join(format!("boot{number}.toml"))
    }

    /// The first member is gone at once.
    pub(crate) fn kill_first(&mut self) {
        self.boot1.take().expect("killed once").kill();
    }

    /// Waits until the second member has noticed.
    pub(crate) fn wait_for_the_second_to_notice(&self) {
        self.boot2.as_ref().expect("it runs").wait_for("member=\"boot1\" state=\"dead\"");
    }
}
