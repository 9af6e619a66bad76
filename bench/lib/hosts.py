"""The hosts of the bench: real sshd processes on loopback ports, one folder each.

Every tool is run through the same client configuration (`config`), in which `master` and `host1`…`host4` are
aliases, so that all of them pay for the same ssh. Keys, known_hosts, configuration and home folders are the
bench's own: nothing of the user's ~/.ssh is read or written.

A host is `<work>/hosts/<name>/` with `home/` (HOME there, so that an agent installed at one host is not found
at another) and `sr/` (its storage).
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from . import measure

CONNECT = Path(__file__).with_name("connect.py")


class Hosts:
    def __init__(self, work, names, spawn):
        """`spawn(argv, **popen)` starts a process that is measured (see measure.Group)."""
        self.folder = Path(work) / "hosts"
        self.ssh_folder = Path(work) / "ssh"
        self.names = names
        self.spawn = spawn
        self.ports = {}
        self.servers = {}

    def __enter__(self):
        try:
            return self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, *_):
        for server in self.servers.values():
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
        for server in self.servers.values():
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(5)
        self.servers = {}

    def _start(self):
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", ""))
        if not sshd:
            raise RuntimeError("sshd is not installed (Debian: openssh-server)")
        if os.geteuid() == 0:
            # Privilege separation refuses to start without its (empty) folder; a machine whose sshd
            # never ran lacks it.
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)

        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.ssh_folder, ignore_errors=True)
        self.ssh_folder.mkdir(parents=True)
        self.ssh_folder.chmod(0o700)
        key = self._keygen("user")
        known = []
        for name in self.names:
            (self.folder / name / "home").mkdir(parents=True)
            (self.folder / name / "sr").mkdir()
            host_key = self._keygen(f"host-{name}")
            known.append(f"{name} {host_key.with_suffix('.pub').read_text().strip()}\n")
            self.ports[name] = free_port()
            config = self.ssh_folder / f"sshd-{name}.conf"
            config.write_text(
                f"""ListenAddress 127.0.0.1:{self.ports[name]}
HostKey {host_key}
AuthorizedKeysFile {key.with_suffix('.pub')}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
PermitUserEnvironment yes
PrintMotd no
MaxStartups 100
MaxSessions 100
LogLevel ERROR
SetEnv HOME={self.folder / name / 'home'} GWBENCH_HOST={name}
Subsystem sftp internal-sftp
"""
            )
            log = open(self.ssh_folder / f"sshd-{name}.log", "wb")
            with log:
                self.servers[name] = self.spawn([sshd, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
        (self.ssh_folder / "known_hosts").write_text("".join(known))
        for name, port in self.ports.items():
            self._wait_for(name, port)
        return self

    def _keygen(self, name):
        path = self.ssh_folder / f"key-{name}"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "goldwire bench", "-f", str(path)],
            check=True, timeout=30, stdin=subprocess.DEVNULL,
        )
        return path

    def _wait_for(self, name, port):
        deadline = time.monotonic() + 10
        while True:
            server = self.servers[name]
            if server.poll() is not None:
                log = (self.ssh_folder / f"sshd-{name}.log").read_text(errors="replace")
                raise RuntimeError(f"sshd for {name} ended at once: {log.strip()[-300:]}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"sshd for {name} does not answer on port {port}")
                time.sleep(0.05)

    def config(self, name, meter_socket, ports=None):
        """Writes a client configuration whose connections are counted by the meter; returns its path."""
        path = self.ssh_folder / name
        # Under a name of its own, so that it can be told from the processes that are measured.
        connect = self.ssh_folder / measure.CONNECT_NAME
        if not connect.exists():
            connect.symlink_to(os.path.realpath(sys.executable))
        text = ""
        for alias in self.names:
            text += (
                f"Host {alias}\n"
                "  HostName 127.0.0.1\n"
                f"  HostKeyAlias {alias}\n"
                f"  Port {(ports or self.ports)[alias]}\n"
            )
        text += (
            "Host *\n"
            f"  User {getpass.getuser()}\n"
            f"  IdentityFile {self.ssh_folder / 'key-user'}\n"
            "  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.ssh_folder / 'known_hosts'}\n"
            "  GlobalKnownHostsFile none\n"
            "  StrictHostKeyChecking yes\n"
            "  BatchMode yes\n"
            "  ConnectTimeout 20\n"
            "  LogLevel ERROR\n"
            f"  ProxyCommand {connect} -I -S {CONNECT} {meter_socket} %n %h %p\n"
            "  ProxyUseFdpass yes\n"
        )
        path.write_text(text)
        return path

    def sr(self, name):
        return self.folder / name / "sr"

    def empty(self, name):
        """Clears a host's storage (its home, with an installed agent, stays)."""
        shutil.rmtree(self.sr(name), ignore_errors=True)
        self.sr(name).mkdir()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
