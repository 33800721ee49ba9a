//! What a power cut can leave of a folder: some of the writes that no sync had made durable, whole or torn, in any order.
//!
//! What is taken for granted of the disk is what SQLite takes for granted: a sync that succeeded holds, a write spoils no byte outside of
//! its range, and a removed file may come back until its folder is synced, which SQLite does with the first sync of each log and journal
//! that it makes. A sector is 512 bytes.

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::disk::Event;

const SECTOR: usize = 512;

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Change {
    /// What is left of a change once a later one is durable.
    fn without(self, later: &Self) -> Vec<Self> {
        match (self, later) {
            (Self::Write(offset, bytes), Self::Write(begin, over)) => {
                let (begin, end) = (*begin, begin + over.len());
                let before = begin.clamp(offset, offset + bytes.len()) - offset;
                let after = end.clamp(offset, offset + bytes.len()) - offset;
                let parts = [(offset, bytes[..before].to_vec()), (offset + after, bytes[after..].to_vec())];
                parts.into_iter().filter(|(_, bytes)| !bytes.is_empty()).map(|(offset, bytes)| Self::Write(offset, bytes)).collect()
            }
            (Self::Write(offset, mut bytes), Self::Truncate(length)) => {
                bytes.truncate(length.saturating_sub(offset));
                if bytes.is_empty() { Vec::new() } else { vec![Self::Write(offset, bytes)] }
            }
            // It cannot cut what was written after it.
            (Self::Truncate(length), Self::Write(begin, over)) if begin + over.len() > length => Vec::new(),
            (Self::Truncate(length), _) => vec![Self::Truncate(length)],
        }
    }

    fn apply(&self, content: &mut Vec<u8>, keeps: &mut dyn FnMut() -> bool) {
        match self {
            Self::Truncate(length) => content.resize(*length, 0),
            Self::Write(offset, bytes) => {
                let mut begin = 0;
                while begin < bytes.len() {
                    // To the end of the sector, which the write need not begin with.
                    let end = bytes.len().min(begin + SECTOR - (offset + begin) % SECTOR);
                    if keeps() {
                        if content.len() < offset + end {
                            content.resize(offset + end, 0);
                        }
                        content[offset + begin..offset + end].copy_from_slice(&bytes[begin..end]);
                    }
                    begin = end;
                }
            }
        }
    }
}

#[derive(Clone, Default)]
struct File {
    durable: Vec<u8>,
    /// Changes since the last sync, and whether one has failed to make them durable: no later sync does then.
    pending: Vec<(Change, bool)>,
    /// Removed, but the folder does not know it for good.
    removed: bool,
    /// Synced since it was made, and the folder with it.
    synced: bool,
}

/// A folder at some moment: what is durable, and what is not yet.
#[derive(Clone, Default)]
pub(crate) struct Folder {
    files: BTreeMap<String, File>,
}

impl Folder {
    /// The durable files of a folder on disk; SQLite's shared memory is not kept across a start.
    pub(crate) fn of(path: &Path) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if !name.ends_with("-shm") && !name.ends_with("-lock") {
                files.insert(name, File { durable: std::fs::read(entry.path()).unwrap(), synced: true, ..File::default() });
            }
        }
        Self { files }
    }

    /// Moves on by one event.
    pub(crate) fn step(&mut self, event: &Event) {
        match event {
            Event::Write { file, offset, bytes } => self.change(file, Change::Write(*offset, bytes.clone())),
            Event::Truncate { file, length } => self.change(file, Change::Truncate(*length)),
            Event::Sync { file: name } => {
                let file = self.files.entry(name.clone()).or_default();
                let new = !std::mem::replace(&mut file.synced, true);
                let mut left: Vec<(Change, bool)> = Vec::new();
                for (change, lost) in std::mem::take(&mut file.pending) {
                    if lost {
                        left.push((change, true));
                    } else {
                        // What an older change may still do, it has done before this one.
                        left = left.into_iter().flat_map(|(older, _)| older.without(&change)).map(|older| (older, true)).collect();
                        change.apply(&mut file.durable, &mut || true);
                    }
                }
                file.pending = left;
                if new && (name.ends_with("-wal") || name.ends_with("-journal")) {
                    self.files.retain(|_, file| !file.removed);
                }
            }
            Event::SyncFailed { file } => {
                self.files.entry(file.clone()).or_default().pending.iter_mut().for_each(|(_, lost)| *lost = true);
            }
            Event::Delete { file, durable: true } => _ = self.files.remove(file),
            Event::Delete { file, durable: false } => {
                if let Some(file) = self.files.get_mut(file) {
                    file.removed = true;
                }
            }
            Event::Mark(_) => {}
        }
    }

    fn change(&mut self, name: &str, change: Change) {
        let file = self.files.entry(name.to_owned()).or_default();
        if file.removed {
            *file = File::default();
        }
        file.pending.push((change, false));
    }

    /// Writes into `path` what a power cut leaves now; one of many possibilities, chosen by `seed`. Seed 0: nothing that is not durable.
    pub(crate) fn cut(&self, seed: u64, path: &Path) {
        let mut random = StdRng::seed_from_u64(seed);
        // How much of what is not durable survives, how much of that is torn, and whether the order is kept.
        let (survives, torn, in_order) = match seed % 4 {
            0 => (0.0, 0.0, true),
            1 => (1.0, random.random_range(0.0..0.5), random.random_bool(0.5)),
            _ => (random.random_range(0.0..1.0), random.random_range(0.0..1.0), random.random_bool(0.5)),
        };
        for (name, file) in &self.files {
            if file.removed && (seed == 0 || random.random_bool(0.5)) {
                continue;
            }
            let mut content = file.durable.clone();
            let mut pending: Vec<&Change> =
                file.pending.iter().map(|(change, _)| change).filter(|_| random.random_bool(survives)).collect();
            if !in_order {
                pending.shuffle(&mut random);
            }
            for change in pending {
                let kept = if random.random_bool(torn) { random.random_range(0.0..1.0) } else { 1.0 };
                change.apply(&mut content, &mut || random.random_bool(kept));
            }
            std::fs::write(path.join(name), content).unwrap();
        }
    }
}
