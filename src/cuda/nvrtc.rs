//! NVRTC: CUDA C++ to machine code for one architecture.
//!
//! Opened by path rather than through cudarc, which takes the first libnvrtc that the loader finds: the one to use is the one
//! that PyTorch brought along, whose machine code the driver under PyTorch is known to accept.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use libloading::Library;

use super::{CudaError, Program, Result, Source};

type Handle = *mut c_void;
type Status = c_int;

const SUCCESS: Status = 0;
const COMPILATION_FAILED: Status = 6;

/// The functions of an opened library. They stay valid for the life of the process: the library is never closed.
pub struct Nvrtc {
    /// The path or name it was opened by.
    pub path: String,
    /// Major and minor.
    pub version: (i32, i32),
    /// Compute capabilities it has machine code for: 90 is sm_90.
    pub architectures: Vec<i32>,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    log: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Handle) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
}

/// Machine code and what the compiler said.
pub struct Compiled {
    pub cubin: Vec<u8>,
    pub log: String,
}

static CANDIDATES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static OPENED: OnceLock<Nvrtc> = OnceLock::new();

/// Says where to look: paths or library names, the preferred first. Has no effect once a library is open.
pub fn search(candidates: Vec<String>) {
    *CANDIDATES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner()) = candidates;
}

/// The NVRTC of this process, opened at the first call.
pub fn nvrtc() -> Result<&'static Nvrtc> {
    if let Some(opened) = OPENED.get() {
        return Ok(opened);
    }
    let candidates = CANDIDATES
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
        .clone();
    let mut failures = Vec::new();
    for path in &candidates {
        match Nvrtc::open(path) {
            Ok(opened) => return Ok(OPENED.get_or_init(|| opened)),
            Err(error) => failures.push(error.to_string()),
        }
    }
    Err(CudaError(format!(
        "NVRTC, CUDA's run-time compiler, was not found: install PyTorch with CUDA, or `pip install nvidia-cuda-nvrtc`; \
         `python -m prefuse doctor` lists the places searched ({} of them; last: {})",
        candidates.len(),
        failures.last().map_or("none", String::as_str)
    )))
}

/// The name and the text of a source for C.
fn named(source: &Source) -> Result<(CString, CString)> {
    let text = |text| {
        CString::new(text).map_err(|_| CudaError(format!("{}: NUL in its text", source.name)))
    };
    Ok((text(source.name)?, text(source.text)?))
}

/// Opens the library of built-in functions in the folder of NVRTC, which asks the loader for it by name alone at the first
/// compilation. NVRTC 13.0 does not say that it is in its own folder; an opened library is found whatever folder it is in.
fn open_builtins(nvrtc: &str) {
    let folder = Path::new(nvrtc).parent();
    let Some(Ok(files)) = folder.map(std::fs::read_dir) else {
        return;
    };
    for file in files.flatten() {
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("libnvrtc-builtins.so") || name.starts_with("nvrtc-builtins64") {
            // SAFETY: loading it runs its initialisers only. Where it fails, NVRTC tries itself and says what it lacks.
            if let Ok(library) = unsafe { Library::new(file.path()) } {
                std::mem::forget(library);
            }
        }
    }
}

impl Nvrtc {
    fn open(path: &str) -> Result<Nvrtc> {
        let missing = |error: libloading::Error| CudaError(format!("{path}: {error}"));
        // SAFETY: loading NVRTC runs its initialisers only; the symbols have the signatures of nvrtc.h, stable since CUDA 11.
        unsafe {
            let library = Library::new(path).map_err(missing)?;
            open_builtins(path);
            let symbols = &library;
            macro_rules! symbol {
                ($name:literal) => {
                    *symbols.get($name).map_err(missing)?
                };
            }
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status =
                symbol!(b"nvrtcVersion\0");
            let count: unsafe extern "C" fn(*mut c_int) -> Status =
                symbol!(b"nvrtcGetNumSupportedArchs\0");
            let list: unsafe extern "C" fn(*mut c_int) -> Status =
                symbol!(b"nvrtcGetSupportedArchs\0");
            let mut nvrtc = Nvrtc {
                path: path.to_owned(),
                version: (0, 0),
                architectures: Vec::new(),
                create: symbol!(b"nvrtcCreateProgram\0"),
                compile: symbol!(b"nvrtcCompileProgram\0"),
                log_size: symbol!(b"nvrtcGetProgramLogSize\0"),
                log: symbol!(b"nvrtcGetProgramLog\0"),
                cubin_size: symbol!(b"nvrtcGetCUBINSize\0"),
                cubin: symbol!(b"nvrtcGetCUBIN\0"),
                destroy: symbol!(b"nvrtcDestroyProgram\0"),
                error: symbol!(b"nvrtcGetErrorString\0"),
            };
            let (mut major, mut minor, mut number) = (0, 0, 0);
            nvrtc.check(version(&mut major, &mut minor))?;
            nvrtc.check(count(&mut number))?;
            nvrtc.version = (major, minor);
            let mut architectures = vec![0; usize::try_from(number).unwrap_or(0)];
            nvrtc.check(list(architectures.as_mut_ptr()))?;
            nvrtc.architectures = architectures;
            std::mem::forget(library);
            Ok(nvrtc)
        }
    }

    /// The architecture to compile for so that a device of this compute capability runs the code: its own, or the newest of
    /// the same major number that this NVRTC knows.
    pub fn architecture_for(&self, capability: i32) -> Result<i32> {
        let runs = |known: &&i32| **known / 10 == capability / 10 && **known <= capability;
        self.architectures.iter().filter(runs).max().copied().ok_or_else(|| {
            CudaError(format!(
                "NVRTC {}.{} ({}) cannot compile for compute capability {}.{}: it knows sm_{:?}; \
                 install the PyTorch build made for this GPU",
                self.version.0,
                self.version.1,
                self.path,
                capability / 10,
                capability % 10,
                self.architectures
            ))
        })
    }

    /// Compiler options of every program. Contraction is off: where a fused multiply-add is wanted the source says so, and
    /// the same arithmetic comes out of every combination of statistics.
    pub fn options(architecture: i32) -> Vec<String> {
        [
            "--std=c++17",
            "--fmad=false",
            "--ptxas-options=-v",
            "--diag-suppress=177",
        ]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("--gpu-architecture=sm_{architecture}")])
        .collect()
    }

    /// Machine code of `program` for sm_`architecture`.
    pub fn compile(&self, program: &Program, architecture: i32) -> Result<Compiled> {
        let (name, text) = named(program.source)?;
        let headers = program
            .headers()
            .into_iter()
            .map(named)
            .collect::<Result<Vec<_>>>()?;
        let (header_names, header_texts): (Vec<_>, Vec<_>) = headers
            .iter()
            .map(|(name, text)| (name.as_ptr(), text.as_ptr()))
            .unzip();
        let options: Vec<CString> = Nvrtc::options(architecture)
            .into_iter()
            .chain(program.definitions())
            .filter_map(|option| CString::new(option).ok())
            .collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: every pointer is to a live NUL-terminated string or to a variable of the type that nvrtc.h asks for; buffers
        // have the sizes that NVRTC just named; the handle is destroyed once.
        unsafe {
            self.check((self.create)(
                &mut handle,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            ))?;
            let status = (self.compile)(handle, options.len() as c_int, options.as_ptr());
            let log = self.text(handle);
            let cubin = if status == SUCCESS {
                self.bytes(handle, self.cubin_size, self.cubin)
            } else {
                Ok(Vec::new())
            };
            (self.destroy)(&mut handle);
            if status == COMPILATION_FAILED {
                let definitions = program.definitions().join(" ");
                return Err(CudaError(format!(
                    "{} ({definitions}) for sm_{architecture}:\n{log}",
                    program.kernel
                )));
            }
            // What the compiler lacks is said in its log alone.
            self.check(status).map_err(|CudaError(reason)| {
                CudaError(format!("{reason}\n{log}").trim_end().to_owned())
            })?;
            Ok(Compiled { cubin: cubin?, log })
        }
    }

    /// # Safety
    /// `handle` is a live program.
    unsafe fn text(&self, handle: Handle) -> String {
        // SAFETY: passed on.
        let bytes = unsafe { self.bytes(handle, self.log_size, self.log) }.unwrap_or_default();
        String::from_utf8_lossy(&bytes)
            .trim_end_matches('\0')
            .to_owned()
    }

    /// # Safety
    /// `handle` is a live program; `size` and `fill` are the two functions of one of its outputs.
    unsafe fn bytes(
        &self,
        handle: Handle,
        size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
        fill: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    ) -> Result<Vec<u8>> {
        let mut length = 0;
        // SAFETY: the buffer has the size that NVRTC asks for.
        unsafe {
            self.check(size(handle, &mut length))?;
            let mut bytes = vec![0u8; length];
            self.check(fill(handle, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }

    fn check(&self, status: Status) -> Result<()> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: NVRTC returns a static string for every status.
        let reason = unsafe { CStr::from_ptr((self.error)(status)) }.to_string_lossy();
        Err(CudaError(format!("NVRTC ({}): {reason}", self.path)))
    }
}
