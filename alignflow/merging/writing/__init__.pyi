from .arithmetic import dequantized as dequantized
from .directory import prepare_directory as prepare_directory
from .directory import write_small_files as write_small_files
from .reader import Reader as Reader
from .shards import STATE as STATE
from .shards import Progress as Progress
from .shards import Written as Written
from .shards import write_weights as write_weights
