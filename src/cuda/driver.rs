//! The driver: devices, their primary contexts, loaded modules, launches on somebody else's stream.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::panic::catch_unwind;
use std::sync::{Mutex, OnceLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::{CudaError, Launch, Program, Result, cache, nvrtc::nvrtc};

/// A device, with its primary context retained: the context that PyTorch uses.
pub struct Device {
    pub ordinal: i32,
    pub name: String,
    /// 90 for compute capability 9.0.
    pub capability: i32,
    pub multiprocessors: usize,
    context: sys::CUcontext,
    functions: Mutex<HashMap<String, Function>>,
}

/// A loaded kernel; its module is never unloaded.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: contexts and functions are handles that the driver lets any thread use.
unsafe impl Send for Device {}
// SAFETY: as above; the map has its own lock.
unsafe impl Sync for Device {}
// SAFETY: as above.
unsafe impl Send for Function {}

/// The process that initialised the driver. A fork inherits the memory, but no driver.
static INITIALISED: OnceLock<u32> = OnceLock::new();
static DEVICES: Mutex<Vec<&'static Device>> = Mutex::new(Vec::new());

/// Initialises the driver once per process.
fn initialise() -> Result<()> {
    match INITIALISED.get() {
        Some(&process) if process == std::process::id() => return Ok(()),
        Some(_) => {
            return Err(CudaError(
                "CUDA was used before this process was forked and cannot be used in the child: \
                 start workers with the 'spawn' method (torch.multiprocessing.set_start_method)"
                    .into(),
            ));
        }
        None => {}
    }
    // SAFETY: tries to load the library, nothing else.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError(
            "the CUDA driver (libcuda) was not found: install NVIDIA's driver, or use CPU tensors; \
             `python -m prefuse doctor` shows what is there"
                .into(),
        ));
    }
    guarded("initialising the driver", result::init)?;
    INITIALISED.get_or_init(std::process::id);
    Ok(())
}

/// Runs `call`, turning a driver error into a sentence and a missing driver function (cudarc panics) into an error.
fn guarded<T>(
    doing: &str,
    call: impl FnOnce() -> std::result::Result<T, DriverError> + std::panic::UnwindSafe,
) -> Result<T> {
    match catch_unwind(call) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(CudaError(format!("CUDA: {doing}: {error:?}"))),
        Err(_) => Err(CudaError(format!(
            "CUDA: {doing}: the driver is too old (it lacks a function); update NVIDIA's driver"
        ))),
    }
}

/// The driver's CUDA version, 13020 for 13.2.
pub fn version() -> Result<i32> {
    initialise()?;
    let mut version = 0;
    // SAFETY: writes one integer.
    guarded("reading the driver's version", move || unsafe {
        sys::cuDriverGetVersion(&mut version)
            .result()
            .map(|()| version)
    })
}

/// The number of devices.
pub fn count() -> Result<i32> {
    initialise()?;
    guarded("counting devices", result::device::get_count)
}

impl Device {
    /// Device `ordinal`, as PyTorch numbers it.
    pub fn get(ordinal: i32) -> Result<&'static Device> {
        initialise()?;
        let mut devices = DEVICES
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(device) = devices.iter().find(|device| device.ordinal == ordinal) {
            return Ok(device);
        }
        let device = guarded("opening the device", move || Device::open(ordinal))?;
        // One per device of the machine, kept as long as the process.
        let device: &'static Device = Box::leak(Box::new(device));
        devices.push(device);
        Ok(device)
    }

    fn open(ordinal: i32) -> std::result::Result<Device, DriverError> {
        use sys::CUdevice_attribute as Attribute;
        let handle = result::device::get(ordinal as c_int)?;
        // SAFETY: `handle` is a device that the driver just named.
        let attribute = |attribute| unsafe { result::device::get_attribute(handle, attribute) };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Device {
            ordinal,
            name: result::device::get_name(handle)?,
            capability: 10 * major + minor,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
                as usize,
            // SAFETY: as above; never released, like PyTorch's own reference.
            context: unsafe { result::primary_ctx::retain(handle)? },
            functions: Mutex::new(HashMap::new()),
        })
    }

    /// The kernel of `program`, compiled and loaded at its first use. The context is current.
    fn function(&self, program: &Program, stream: sys::CUstream) -> Result<Function> {
        let key = format!("{} {}", program.kernel, program.definitions().join(" "));
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(function) = functions.get(&key) {
            return Ok(*function);
        }
        if is_capturing(stream)? {
            return Err(CudaError(format!(
                "{key} was first needed while a CUDA graph was being captured, when no module can be loaded: \
                 run the same call once before the capture (shapes of the same kind, same dtypes and statistics)"
            )));
        }
        let nvrtc = nvrtc()?;
        let cubin = cache::compiled(nvrtc, program, nvrtc.architecture_for(self.capability)?)?;
        let name = std::ffi::CString::new(program.kernel).unwrap_or_default();
        // SAFETY: a complete cubin, from NVRTC or verified by its hash.
        let function = guarded(&format!("loading {key}"), move || unsafe {
            let module = result::module::load_data(cubin.as_ptr().cast())?;
            result::module::get_function(module, name)
        })?;
        functions.insert(key, Function(function));
        Ok(Function(function))
    }
}

fn is_capturing(stream: sys::CUstream) -> Result<bool> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let stream = stream as usize;
    // SAFETY: the stream is the caller's, of the current context.
    guarded("looking at the stream", move || unsafe {
        sys::cuStreamIsCapturing(stream as sys::CUstream, &mut status)
            .result()
            .map(|()| status)
    })
    .map(|status| status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// Makes a context current for a scope, on this thread, and brings back the one before.
struct Current;

impl Current {
    fn enter(context: sys::CUcontext) -> Result<Current> {
        let context = context as usize;
        // SAFETY: a retained primary context.
        guarded("entering the device's context", move || unsafe {
            sys::cuCtxPushCurrent_v2(context as sys::CUcontext).result()
        })?;
        Ok(Current)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut left = std::ptr::null_mut();
        // SAFETY: pops what `enter` pushed; there is nobody to tell of a failure.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut left) };
    }
}

/// Queues `launches` on `stream`, a stream of `device`. Does not wait for them.
///
/// # Safety
/// The launches' arguments hold device addresses that stay valid until the stream has passed them.
pub unsafe fn launch(device: &Device, stream: usize, launches: &[Launch]) -> Result<()> {
    if launches.is_empty() {
        return Ok(());
    }
    let _current = Current::enter(device.context)?;
    for launch in launches {
        let function = device.function(&launch.program, stream as sys::CUstream)?.0 as usize;
        let (grid, block, argument) =
            (launch.grid, launch.block, launch.argument.as_ptr() as usize);
        // SAFETY: the argument is the kernel's one parameter, copied by the driver before it returns; its addresses are the caller's word.
        guarded(launch.program.kernel, move || unsafe {
            let mut parameters = [argument as *mut c_void];
            let function = function as sys::CUfunction;
            result::launch_kernel(
                function,
                (grid, 1, 1),
                (block, 1, 1),
                0,
                stream as sys::CUstream,
                &mut parameters,
            )
        })?;
    }
    Ok(())
}
