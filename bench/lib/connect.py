"""ssh's ProxyCommand (with ProxyUseFdpass): opens the connection and gives it to two owners.

ssh gets the socket itself, so that its bytes take exactly the way they take without us. The meter gets a
duplicate, from which it reads the kernel's own byte counters (see wire.Meter). This program then ends.
Arguments: METER_SOCKET ALIAS ADDRESS PORT. Kept to builtin modules: it is started once per connection.
"""

import os
import socket
import sys
import time

meter_path, alias, address, port = sys.argv[1:5]
connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
connection.settimeout(20)
connection.connect((address, int(port)))
connection.settimeout(None)

with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as meter:
    meter.settimeout(20)
    meter.connect(meter_path)
    # getppid is ssh: it starts the command with `exec`, without a shell between.
    word = "conn %s %d %.4f\n" % (alias, os.getppid(), time.process_time())
    socket.send_fds(meter, [word.encode()], [connection.fileno()])
    meter.recv(1)  # the meter has it: nothing of this connection can be missed

with socket.socket(fileno=os.dup(1)) as ssh:
    socket.send_fds(ssh, [b"\0"], [connection.fileno()])
