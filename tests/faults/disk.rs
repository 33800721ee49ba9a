//! A disk that fails and loses power on demand: SQLite's own file layer (a "VFS") with a shim before it.
//!
//! The shim becomes the default of this process, so that a server started here runs on it without knowing. It looks only at files in a
//! folder that a [`Disk`] was made for; everything else passes through. It can fail a chosen operation, and it can write down every change
//! of a file and every sync, in one order with what the test marks as acknowledged: `power` makes from that what a power cut could leave.
//! It can be small, too: a file that would grow past what is left of a quota finds the disk full, as on a real one.
//! No sync reaches the machine's disk, here a power cut is only played. What a file's bytes mean is not known here.
//!
//! Reference: <https://sqlite.org/c3ref/vfs.html>, <https://sqlite.org/c3ref/io_methods.html>.

// SQLite's file layer is a table of C functions over memory that SQLite owns; there is no safe way to stand in it. Nothing else here needs this.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Weak};

use libsqlite3_sys as sqlite;

use crate::ledger::Mark;

/// What a disk can do to its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Open,
    Read,
    Write,
    Truncate,
    Sync,
    Size,
    Access,
    Delete,
    Map,
}

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Any operation fails (EIO).
    Io,
    /// A write finds the disk full (ENOSPC) and writes nothing.
    Full,
    /// A write stops half-way and fails.
    Short,
    /// A sync fails. As on Linux, what it was to make durable may be lost, also when a later sync succeeds.
    Sync,
}

impl Fault {
    pub(crate) const ALL: [Self; 4] = [Self::Io, Self::Full, Self::Short, Self::Sync];

    fn can_hit(self, operation: Operation) -> bool {
        match self {
            Self::Io => true,
            Self::Full | Self::Short => operation == Operation::Write,
            Self::Sync => operation == Operation::Sync,
        }
    }
}

/// When to fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    /// How many operations that the fault can hit go well before.
    pub(crate) after: usize,
    /// Whether all the later ones fail too.
    pub(crate) lasting: bool,
}

/// Something that happened, in the one order in which it did.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Bytes were handed to the system; they are durable only after a sync.
    Write { file: String, offset: usize, bytes: Vec<u8> },
    /// A file was cut to a length; this is durable only after a sync.
    Truncate { file: String, length: usize },
    /// All changes of a file before this are durable.
    Sync { file: String },
    /// A sync failed.
    SyncFailed { file: String },
    /// A file was removed; `durable` when the folder was synced with it.
    Delete { file: String, durable: bool },
    /// What the test says.
    Mark(Mark),
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    /// Operations so far that each of [`Fault::ALL`] can hit.
    counts: [usize; Fault::ALL.len()],
    struck: usize,
    /// Bytes that there is room for.
    quota: Option<u64>,
    /// Bytes of each file, while there is a quota.
    lengths: BTreeMap<String, u64>,
    recording: bool,
    trace: Vec<Event>,
}

/// The disk under one folder.
pub(crate) struct Disk {
    state: Mutex<State>,
}

/// The folders that have a disk. A disk that nobody holds any more is as if it were not there.
static DISKS: Mutex<BTreeMap<PathBuf, Weak<Disk>>> = Mutex::new(BTreeMap::new());

impl Disk {
    /// Puts a disk under a folder.
    pub(crate) fn under(folder: &Path) -> Arc<Self> {
        LazyLock::force(&REAL);
        let disk = Arc::new(Self { state: Mutex::default() });
        let mut disks = DISKS.lock().unwrap();
        disks.retain(|_, disk| disk.strong_count() > 0);
        disks.insert(folder.canonicalize().unwrap(), Arc::downgrade(&disk));
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Fails from now on as planned.
    pub(crate) fn plan(&self, plan: Plan) {
        let mut state = self.state();
        state.counts = Default::default();
        state.struck = 0;
        state.plan = Some(plan);
    }

    /// Works from now on.
    pub(crate) fn heal(&self) {
        self.state().plan = None;
    }

    /// Has room for so many bytes from now on, those of its files so far among them.
    pub(crate) fn limit(&self, folder: &Path, bytes: u64) {
        let mut state = self.state();
        let files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        state.lengths = files.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len())).collect();
        state.quota = Some(bytes);
        state.struck = 0;
    }

    /// Bytes of its files, while there is a quota.
    pub(crate) fn taken(&self) -> u64 {
        self.state().lengths.values().sum()
    }

    /// Whether there is room for a file to be so long; if so, it is taken.
    fn makes_room(&self, name: &str, length: u64) -> bool {
        let mut state = self.state();
        let Some(quota) = state.quota else { return true };
        let own = state.lengths.get(name).copied().unwrap_or_default();
        let others = state.lengths.values().sum::<u64>() - own;
        let fits = length <= own || others + length <= quota;
        if fits {
            state.lengths.insert(name.to_owned(), own.max(length));
        } else {
            state.struck += 1;
        }
        fits
    }

    /// A file has another length now.
    fn resized(&self, name: &str, length: u64) {
        let mut state = self.state();
        if state.quota.is_some() {
            state.lengths.insert(name.to_owned(), length);
        }
    }

    /// How often the plan has struck, or the quota.
    pub(crate) fn struck(&self) -> usize {
        self.state().struck
    }

    /// How many operations there were that a fault can hit.
    pub(crate) fn count(&self, fault: Fault) -> usize {
        self.state().counts[fault as usize]
    }

    /// Writes down what happens from now on.
    pub(crate) fn record(&self) {
        self.state().recording = true;
    }

    /// Writes down what the test says, between the operations before it and those after it.
    pub(crate) fn mark(&self, mark: Mark) {
        self.state().trace.push(Event::Mark(mark));
    }

    /// What was written down so far.
    pub(crate) fn trace(&self) -> Vec<Event> {
        self.state().trace.clone()
    }

    fn note(&self, event: impl FnOnce() -> Event) {
        let mut state = self.state();
        if state.recording {
            state.trace.push(event());
        }
    }

    /// The fault that this operation meets.
    fn meets(&self, operation: Operation) -> Option<Fault> {
        let mut state = self.state();
        let mut met = None;
        for fault in Fault::ALL.into_iter().filter(|fault| fault.can_hit(operation)) {
            let before = state.counts[fault as usize];
            state.counts[fault as usize] += 1;
            if let Some(plan) = state.plan
                && plan.fault == fault
                && (before == plan.after || plan.lasting && before > plan.after)
            {
                met = Some(fault);
            }
        }
        state.struck += usize::from(met.is_some());
        met
    }
}

/// The disk of a path and the name of the file on it.
fn find(path: *const c_char) -> Option<Place> {
    if path.is_null() {
        return None;
    }
    // SAFETY: SQLite hands over a path that ends with a zero and lives as long as the call.
    let path = Path::new(unsafe { CStr::from_ptr(path) }.to_str().ok()?);
    let disk = DISKS.lock().unwrap().get(path.parent()?)?.upgrade()?;
    Some(Place { disk, name: path.file_name()?.to_str()?.to_owned() })
}

/// Where an open file lies.
struct Place {
    disk: Arc<Disk>,
    name: String,
}

/// An open file as SQLite holds it; the real layer's own follows in the same piece of memory.
#[repr(C)]
struct File {
    base: sqlite::sqlite3_file,
    /// Null for a file outside every disk.
    place: *mut Place,
}

/// The layer that does the work.
struct Real(*mut sqlite::sqlite3_vfs);

// SAFETY: SQLite calls one VFS from all threads; that its default is fit for this is part of its contract.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

/// The default layer before the shim took its place.
static REAL: LazyLock<Real> = LazyLock::new(|| {
    // SAFETY: the default VFS lives for ever; the shim is a copy of it, leaked so that it does too. All functions that are not replaced
    // work on their arguments alone or on the application pointer, which is copied.
    unsafe {
        assert_eq!(sqlite::sqlite3_initialize(), sqlite::SQLITE_OK);
        let real = sqlite::sqlite3_vfs_find(std::ptr::null());
        let shim = Box::leak(Box::new(*real));
        shim.zName = c"faulty".as_ptr();
        shim.pNext = std::ptr::null_mut();
        shim.szOsFile = (*real).szOsFile + c_int::try_from(size_of::<File>()).unwrap();
        shim.xOpen = Some(open);
        shim.xDelete = Some(delete);
        shim.xAccess = Some(access);
        assert_eq!(sqlite::sqlite3_vfs_register(shim, 1), sqlite::SQLITE_OK);
        Real(real)
    }
});

/// Version 2: with shared memory, which WAL needs; without memory-mapped pages, which would go past the shim.
static METHODS: sqlite::sqlite3_io_methods = sqlite::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shared_memory_map),
    xShmLock: Some(shared_memory_lock),
    xShmBarrier: Some(shared_memory_barrier),
    xShmUnmap: Some(shared_memory_unmap),
    xFetch: None,
    xUnfetch: None,
};

type Handle = *mut sqlite::sqlite3_file;

/// Where the file lies, if on a disk of ours.
///
/// # Safety
/// `file` was opened by [`open`] and not closed.
unsafe fn place<'a>(file: Handle) -> Option<&'a Place> {
    unsafe { (*file.cast::<File>()).place.as_ref() }
}

/// The fault that an operation on the file meets.
///
/// # Safety
/// As for [`place`].
unsafe fn meets(file: Handle, operation: Operation) -> Option<Fault> {
    unsafe { place(file) }.and_then(|place| place.disk.meets(operation))
}

/// The real layer's file.
fn inner(file: Handle) -> Handle {
    file.cast::<u8>().wrapping_add(size_of::<File>()).cast()
}

/// Calls the real layer's function on its file.
macro_rules! pass {
    ($function:ident, $file:expr $(, $argument:expr)*) => {{
        let inner = inner($file);
        // SAFETY: `open` let the real layer fill its file in, and SQLite calls only with files that are open.
        unsafe { ((*(*inner).pMethods).$function.unwrap())(inner $(, $argument)*) }
    }};
}

unsafe extern "C" fn open(_: *mut sqlite::sqlite3_vfs, path: *const c_char, file: Handle, flags: c_int, got: *mut c_int) -> c_int {
    let place = find(path);
    // SAFETY: SQLite gives `szOsFile` bytes, enough for both; a file without methods is one that is not open.
    unsafe {
        (*file).pMethods = std::ptr::null();
        (*inner(file)).pMethods = std::ptr::null();
        if place.as_ref().is_some_and(|place| place.disk.meets(Operation::Open).is_some()) {
            return sqlite::SQLITE_CANTOPEN;
        }
        let code = ((*REAL.0).xOpen.unwrap())(REAL.0, path, inner(file), flags, got);
        if code == sqlite::SQLITE_OK {
            let place = place.map_or(std::ptr::null_mut(), |place| Box::into_raw(Box::new(place)));
            file.cast::<File>().write(File { base: sqlite::sqlite3_file { pMethods: &METHODS }, place });
        }
        code
    }
}

unsafe extern "C" fn delete(_: *mut sqlite::sqlite3_vfs, path: *const c_char, sync_folder: c_int) -> c_int {
    if let Some(place) = find(path) {
        if place.disk.meets(Operation::Delete).is_some() {
            return sqlite::SQLITE_IOERR_DELETE;
        }
        place.disk.note(|| Event::Delete { file: place.name.clone(), durable: sync_folder != 0 });
        place.disk.resized(&place.name, 0);
    }
    // SAFETY: the arguments are SQLite's own.
    unsafe { ((*REAL.0).xDelete.unwrap())(REAL.0, path, 0) }
}

unsafe extern "C" fn access(_: *mut sqlite::sqlite3_vfs, path: *const c_char, flags: c_int, answer: *mut c_int) -> c_int {
    if find(path).is_some_and(|place| place.disk.meets(Operation::Access).is_some()) {
        return sqlite::SQLITE_IOERR_ACCESS;
    }
    // SAFETY: the arguments are SQLite's own.
    unsafe { ((*REAL.0).xAccess.unwrap())(REAL.0, path, flags, answer) }
}

unsafe extern "C" fn close(file: Handle) -> c_int {
    let code = pass!(xClose, file);
    // SAFETY: made by `open`, and SQLite closes a file once.
    unsafe {
        let place = (*file.cast::<File>()).place;
        if !place.is_null() {
            drop(Box::from_raw(place));
        }
    }
    code
}

unsafe extern "C" fn read(file: Handle, buffer: *mut c_void, amount: c_int, offset: sqlite::sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls with an open file; so in every function below.
    if unsafe { meets(file, Operation::Read) }.is_some() {
        return sqlite::SQLITE_IOERR_READ;
    }
    pass!(xRead, file, buffer, amount, offset)
}

unsafe extern "C" fn write(file: Handle, buffer: *const c_void, amount: c_int, offset: sqlite::sqlite3_int64) -> c_int {
    let (amount, code) = match unsafe { meets(file, Operation::Write) } {
        None => (amount, sqlite::SQLITE_OK),
        Some(Fault::Short) => (amount / 2, sqlite::SQLITE_IOERR_WRITE),
        Some(Fault::Full) => return sqlite::SQLITE_FULL,
        Some(Fault::Io | Fault::Sync) => return sqlite::SQLITE_IOERR_WRITE,
    };
    if let Some(place) = unsafe { place(file) } {
        if !place.disk.makes_room(&place.name, u64::try_from(offset).unwrap() + u64::from(amount.unsigned_abs())) {
            return sqlite::SQLITE_FULL;
        }
        place.disk.note(|| {
            // SAFETY: SQLite hands over `amount` readable bytes at least.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), amount.unsigned_abs() as usize) };
            Event::Write { file: place.name.clone(), offset: usize::try_from(offset).unwrap(), bytes: bytes.to_vec() }
        });
    }
    let written = pass!(xWrite, file, buffer, amount, offset);
    if code == sqlite::SQLITE_OK { written } else { code }
}

unsafe extern "C" fn truncate(file: Handle, length: sqlite::sqlite3_int64) -> c_int {
    if unsafe { meets(file, Operation::Truncate) }.is_some() {
        return sqlite::SQLITE_IOERR_TRUNCATE;
    }
    if let Some(place) = unsafe { place(file) } {
        place.disk.note(|| Event::Truncate { file: place.name.clone(), length: usize::try_from(length).unwrap() });
        place.disk.resized(&place.name, u64::try_from(length).unwrap());
    }
    pass!(xTruncate, file, length)
}

unsafe extern "C" fn sync(file: Handle, flags: c_int) -> c_int {
    let Some(place) = (unsafe { place(file) }) else { return pass!(xSync, file, flags) };
    if place.disk.meets(Operation::Sync).is_some() {
        place.disk.note(|| Event::SyncFailed { file: place.name.clone() });
        return sqlite::SQLITE_IOERR_FSYNC;
    }
    place.disk.note(|| Event::Sync { file: place.name.clone() });
    sqlite::SQLITE_OK
}

unsafe extern "C" fn size(file: Handle, answer: *mut sqlite::sqlite3_int64) -> c_int {
    if unsafe { meets(file, Operation::Size) }.is_some() {
        return sqlite::SQLITE_IOERR_FSTAT;
    }
    pass!(xFileSize, file, answer)
}

unsafe extern "C" fn lock(file: Handle, level: c_int) -> c_int {
    pass!(xLock, file, level)
}

unsafe extern "C" fn unlock(file: Handle, level: c_int) -> c_int {
    pass!(xUnlock, file, level)
}

unsafe extern "C" fn check_reserved_lock(file: Handle, answer: *mut c_int) -> c_int {
    pass!(xCheckReservedLock, file, answer)
}

unsafe extern "C" fn file_control(file: Handle, code: c_int, argument: *mut c_void) -> c_int {
    pass!(xFileControl, file, code, argument)
}

unsafe extern "C" fn sector_size(file: Handle) -> c_int {
    pass!(xSectorSize, file)
}

unsafe extern "C" fn device_characteristics(file: Handle) -> c_int {
    pass!(xDeviceCharacteristics, file)
}

unsafe extern "C" fn shared_memory_map(file: Handle, page: c_int, size: c_int, extend: c_int, answer: *mut *mut c_void) -> c_int {
    if unsafe { meets(file, Operation::Map) }.is_some() {
        return sqlite::SQLITE_IOERR_SHMMAP;
    }
    pass!(xShmMap, file, page, size, extend, answer)
}

unsafe extern "C" fn shared_memory_lock(file: Handle, offset: c_int, count: c_int, flags: c_int) -> c_int {
    pass!(xShmLock, file, offset, count, flags)
}

unsafe extern "C" fn shared_memory_barrier(file: Handle) {
    pass!(xShmBarrier, file);
}

unsafe extern "C" fn shared_memory_unmap(file: Handle, delete: c_int) -> c_int {
    pass!(xShmUnmap, file, delete)
}
