"""A bucket in memory, which several processes may see."""

import pathlib
from collections.abc import MutableMapping

from etils import epath


class Folder(pathlib.PurePosixPath):
    """A class of somebody's own for addresses ``folder://``, whose files are in memory."""

    files: MutableMapping[str, bytes] = {}  # noqa: RUF012

    def exists(self):
        return any(f"{name}/".startswith(f"{self}/") for name in self.files.keys())  # noqa: SIM118

    def is_dir(self):
        return self.exists() and str(self) not in self.files

    def iterdir(self):
        depth = len(self.parts)
        return iter({self / type(self)(name).parts[depth] for name in self._below()})

    def mkdir(self, parents=False, exist_ok=False):
        pass

    def read_bytes(self):
        return self.files[str(self)]

    def write_bytes(self, contents):
        self.files[str(self)] = contents

    def unlink(self):
        del self.files[str(self)]

    def rmtree(self):
        for name in self._below():
            del self.files[name]

    def _below(self):
        # Of what a manager of `multiprocessing` shares, keys() is a list.
        return [name for name in self.files.keys() if name.startswith(f"{self}/")]  # noqa: SIM118


epath.register_path_cls("folder://")(Folder)
