"""llama-server as a child process: started on a free port, waited for, stopped. What bench/load.py and tests/flow share."""

import http.client
import pathlib
import socket
import subprocess
import time


class NotStarted(Exception):
    """llama-server ended, or did not answer in time; the message has the end of its log."""


class ServerProcess:
    """Runs from construction to stop(); what it prints goes to `log_path` and can be read at any time. `apart` is a process
    group of its own: Ctrl-C then reaches the caller alone, who has to stop it."""

    def __init__(self, program, arguments, env, log_path, *, apart=False):
        self.log_path = pathlib.Path(log_path)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [program, "--host", "127.0.0.1", "--port", self.port, *arguments]
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen([str(word) for word in command], env=env, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=apart)

    def wait(self, seconds):
        """Until it answers; NotStarted if it does not."""
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline and self.process.poll() is None:
                if self.healthy():
                    return
                time.sleep(0.05)
        except BaseException:  # Ctrl-C
            self.stop()
            raise
        self.stop()
        raise NotStarted(f"llama-server did not start; its log ends with\n{self.log()[-3000:]}")

    def healthy(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def log(self):
        return self.log_path.read_text(errors="replace")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
