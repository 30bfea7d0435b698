"""Files and folders that this program writes, kept apart from a user's files.

A folder that is made or written to here holds an owner file, `.bilevax`. It records whether this program made the
folder, and the SHA-256 of each file that it wrote there. A file that it does not list is never removed or overwritten.
"""

from bilevax._files.folders import claim as claim
from bilevax._files.folders import is_ours as is_ours
from bilevax._files.folders import make as make
from bilevax._files.folders import make_writable as make_writable
from bilevax._files.folders import read_mark as read_mark
from bilevax._files.folders import remove_ours as remove_ours
from bilevax._files.folders import remove_whole as remove_whole
from bilevax._files.folders import scratch as scratch
from bilevax._files.folders import sweep as sweep
from bilevax._files.locks import LockedError as LockedError
from bilevax._files.locks import lock as lock
from bilevax._files.locks import require_unlocked as require_unlocked
from bilevax._files.outputs import Outputs as Outputs
from bilevax._files.paths import local_path as local_path
from bilevax._files.paths import reason as reason
from bilevax._files.whole import replace as replace
from bilevax._files.whole import sync as sync
