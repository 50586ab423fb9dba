//! Bringing what the packs have, and the index does not, into the index. Whether the index is to be
//! trusted at all is decided in `reopen`.

use std::{
    collections::{HashMap, VecDeque},
    fs::OpenOptions,
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use parking_lot::Mutex;

use super::{
    error::LocalError,
    index::{Change, Index, Mark},
    pack::{PACK_HEADER_LEN, Packs, pack_path},
    record::{Codec, Key},
    scan::{Payloads, ScanError, Summary, scan},
};

/// The most threads that read packs, and the most that write to the index.
const THREADS_MAX: usize = 4;

/// The changes that go into the index at a time: some 20 MB of memory. They are sorted, which is
/// worth more the more they are.
const REPLAY_BATCH: usize = 64 * 1024;

/// The records that a scan hands on at a time, and how many such batches of a pack wait.
const SCAN_BATCH: usize = 1024;
const SCAN_BATCHES: usize = 8;

/// A stretch of a pack that the index does not know.
struct Stretch {
    pack: u32,
    from: u64,
    length: u64,
}

/// What a scan brings.
enum Scanned {
    /// Records in their order: what becomes of their keys, and where they end.
    Records(Vec<(Key, Change, u64)>),
    /// Nothing follows.
    End(Result<Summary, ScanError>),
}

/// Brings what lies behind the mark into the index, and cuts a torn tail off the last pack.
///
/// Packs are read by several threads, ahead of one that takes their records in the packs' order,
/// since the last record of a key counts.
pub(super) fn replay(
    index: &Index,
    packs: &Packs,
    mark: Option<Mark>,
    whole: &mut HashMap<u32, bool>,
) -> Result<(), LocalError> {
    let lengths = packs.lengths();
    let first = mark.map_or(0, |mark| mark.pack);
    if let Some(mark) = mark {
        let length = lengths.get(&mark.pack).copied();
        if length.is_none_or(|length| length < mark.offset) {
            tracing::error!(
                pack = %pack_path(packs.folder(), mark.pack).display(),
                expected = mark.offset,
                found = length.unwrap_or(0),
                "a pack is cut short: some records are lost",
            );
            // Nothing is added to it: what the index has behind its end must stay lost.
            whole.insert(mark.pack, false);
        }
    }
    let last = lengths.keys().last().copied();
    let mut waiting = VecDeque::new();
    let mut coming = Vec::new();
    for (pack, length) in lengths.range(first..).map(|(pack, length)| (*pack, *length)) {
        let from = match mark {
            Some(mark) if mark.pack == pack => mark.offset,
            _ => PACK_HEADER_LEN,
        };
        let (sender, receiver) = sync_channel(SCAN_BATCHES);
        waiting.push_back((Stretch { pack, from, length }, sender));
        coming.push((Stretch { pack, from, length }, receiver));
    }
    let threads = threads().min(coming.len());
    let waiting = Mutex::new(waiting);
    thread::scope(|scope| {
        for _ in 0..threads {
            let read = || {
                loop {
                    // Taken in the packs' order, so that the one that is awaited is being read.
                    let next = waiting.lock().pop_front();
                    let Some((stretch, sender)) = next else { break };
                    read_stretch(packs, &stretch, &sender);
                }
            };
            thread::Builder::new()
                .name("cairn-replay".to_owned())
                .spawn_scoped(scope, read)
                .map_err(|error| LocalError::io("start a thread for", packs.folder(), error))?;
        }
        let mut replay = Replay { index, packs, threads: self::threads(), latest: HashMap::new() };
        for (stretch, receiver) in coming {
            let summary = replay.take(&stretch, &receiver)?;
            finish_pack(packs, &stretch, &summary, Some(stretch.pack) == last, whole)?;
        }
        Ok(())
    })
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX)
}

fn read_stretch(packs: &Packs, stretch: &Stretch, sender: &SyncSender<Scanned>) {
    // Nobody takes it if the replay has failed.
    let stopped = || ScanError::Io(io::ErrorKind::BrokenPipe.into());
    let mut batch = Vec::with_capacity(SCAN_BATCH);
    let scanned = packs.open(stretch.pack).map_err(ScanError::from).and_then(|file| {
        let (pack, from, length) = (stretch.pack, stretch.from, stretch.length);
        scan(&file, pack, from, length, Payloads::Checked, |found| {
            let change = match found.header.codec {
                Codec::Deletion if found.place.suspect => return Ok(()),
                Codec::Deletion => Change::Remove,
                Codec::Raw | Codec::Zstd => Change::Set(found.place),
            };
            batch.push((found.header.key, change, found.end));
            if batch.len() < SCAN_BATCH {
                return Ok(());
            }
            let full = std::mem::replace(&mut batch, Vec::with_capacity(SCAN_BATCH));
            sender.send(Scanned::Records(full)).map_err(|_| stopped())
        })
    });
    let _ = sender.send(Scanned::Records(batch));
    let _ = sender.send(Scanned::End(scanned));
}

/// Takes note of what a scan says of its pack.
fn finish_pack(
    packs: &Packs,
    stretch: &Stretch,
    summary: &Summary,
    is_last: bool,
    whole: &mut HashMap<u32, bool>,
) -> Result<(), LocalError> {
    let (id, length) = (stretch.pack, stretch.length);
    let path = pack_path(packs.folder(), id);
    let is_whole = whole.get(&id) == Some(&true);
    if summary.gaps > 0 {
        tracing::error!(
            pack = %path.display(),
            gaps = summary.gaps,
            "a pack is damaged: some records are lost",
        );
        whole.insert(id, false);
    }
    if summary.end >= length {
        return Ok(());
    }
    let bytes = length - summary.end;
    if is_last && is_whole {
        tracing::warn!(
            pack = %path.display(),
            bytes,
            "the end of the last pack was not written whole and is cut off",
        );
        let failed = |error| LocalError::io("cut", &path, error);
        let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
        file.set_len(summary.end).and_then(|()| file.sync_all()).map_err(failed)?;
        packs.set_length(id, summary.end);
    } else {
        tracing::warn!(pack = %path.display(), bytes, "the end of a pack has no whole record");
        whole.insert(id, false);
    }
    Ok(())
}

/// Changes on their way into the index.
struct Replay<'a> {
    index: &'a Index,
    packs: &'a Packs,
    threads: usize,
    latest: HashMap<Key, Change>,
}

impl Replay<'_> {
    /// Takes what a scan brings to its end.
    fn take(
        &mut self,
        stretch: &Stretch,
        scanned: &Receiver<Scanned>,
    ) -> Result<Summary, LocalError> {
        let mut end = stretch.from;
        loop {
            match scanned.recv() {
                Ok(Scanned::Records(records)) => {
                    for (key, change, record_end) in records {
                        end = end.max(record_end);
                        self.push(key, change)?;
                        if self.latest.len() >= REPLAY_BATCH {
                            self.apply(Mark { pack: stretch.pack, offset: end })?;
                        }
                    }
                }
                Ok(Scanned::End(summary)) => {
                    let summary = summary
                        .map_err(|error| error.of_pack(self.packs.folder(), stretch.pack))?;
                    // A pack that is cut short does not take the mark back.
                    if stretch.from <= stretch.length {
                        self.apply(Mark { pack: stretch.pack, offset: summary.end })?;
                    }
                    return Ok(summary);
                }
                // The thread has panicked, which is told where it is joined.
                Err(_) => return Err(LocalError::Closed(self.packs.folder().to_owned())),
            }
        }
    }

    fn push(&mut self, key: Key, change: Change) -> Result<(), LocalError> {
        let is_damaged = matches!(change, Change::Set(place) if place.suspect);
        if !(is_damaged && self.has_good(&key)?) {
            self.latest.insert(key, change);
        }
        Ok(())
    }

    fn has_good(&self, key: &Key) -> Result<bool, LocalError> {
        let place = match self.latest.get(key) {
            Some(change) => change.place(),
            None => self.index.get(key)?,
        };
        Ok(place.is_some_and(|place| self.packs.holds(key, &place)))
    }

    /// Not all or nothing, but the mark comes last, and to do it once more does no harm.
    fn apply(&mut self, mark: Mark) -> Result<(), LocalError> {
        let mut changes: Vec<(Key, Change)> = self.latest.drain().collect();
        changes.sort_unstable_by_key(|(key, _)| *key);
        let share = changes.len().div_ceil(self.threads).max(SCAN_BATCH);
        let index = self.index;
        thread::scope(|scope| {
            let shares = changes.chunks(share);
            let writers: Vec<_> =
                shares.map(|share| scope.spawn(move || index.apply(share, None))).collect();
            writers.into_iter().try_for_each(|writer| {
                let closed = |_| Err(LocalError::Closed(self.packs.folder().to_owned()));
                writer.join().unwrap_or_else(closed)
            })
        })?;
        self.index.apply(&[], Some(mark))
    }
}
