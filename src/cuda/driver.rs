//! The driver: devices, their primary contexts, loaded modules, launches on somebody else's stream.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::once::OncePerKey;
use super::{CudaError, Launch, Result, cache, nvrtc::nvrtc};

/// A device, with its primary context retained: the context that PyTorch uses.
pub struct Device {
    pub ordinal: i32,
    pub name: String,
    /// 90 for compute capability 9.0.
    pub capability: i32,
    pub multiprocessors: usize,
    /// Bytes of shared memory that a block may have, static and dynamic, where the kernel asks for it.
    pub shared: usize,
    context: sys::CUcontext,
    functions: OncePerKey<Function>,
    /// Whether the clusters of a launch have a place, by kernel and shared memory.
    places: OncePerKey<bool>,
}

/// A loaded kernel; its module is never unloaded.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: contexts and functions are handles that the driver lets any thread use.
unsafe impl Send for Device {}
// SAFETY: as above; the map has its own locks.
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
    let lacking = lacking();
    if !lacking.is_empty() {
        return Err(CudaError(format!(
            "the CUDA driver is too old (it lacks {}): update NVIDIA's driver, or use CPU tensors",
            lacking.join(", ")
        )));
    }
    result::init().map_err(|error| match error.0 {
        sys::cudaError_enum::CUDA_ERROR_STUB_LIBRARY => CudaError(
            "the CUDA driver that was found is a toolkit's stub: take the folder of its libcuda.so out of \
             LD_LIBRARY_PATH"
                .into(),
        ),
        _ => failed("initialising the driver")(error),
    })?;
    INITIALISED.get_or_init(std::process::id);
    Ok(())
}

/// Every function of the driver that is called, here or by cudarc on the way, which panics where one is not there.
const FUNCTIONS: [&str; 19] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuStreamIsCapturing",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cuOccupancyMaxActiveClusters",
];

/// Those of [`FUNCTIONS`] that the driver lacks.
fn lacking() -> Vec<&'static str> {
    // SAFETY: loads the library, which is there, and looks names up in it.
    unsafe {
        let library = sys::culib();
        FUNCTIONS
            .into_iter()
            .filter(|name| library.get::<*const c_void>(name.as_bytes()).is_err())
            .collect()
    }
}

/// A driver error as a sentence.
fn failed(doing: &str) -> impl FnOnce(DriverError) -> CudaError {
    move |error| CudaError(format!("CUDA: {doing}: {error:?}"))
}

/// The driver's CUDA version, 13020 for 13.2.
pub fn version() -> Result<i32> {
    initialise()?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version).result() }
        .map_err(failed("reading the driver's version"))?;
    Ok(version)
}

/// The number of devices.
pub fn count() -> Result<i32> {
    initialise()?;
    result::device::get_count().map_err(failed("counting devices"))
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
        let device = Device::open(ordinal).map_err(failed("opening the device"))?;
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
            shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
            // SAFETY: as above; never released, like PyTorch's own reference.
            context: unsafe { result::primary_ctx::retain(handle)? },
            functions: OncePerKey::new(),
            places: OncePerKey::new(),
        })
    }

    /// The kernel of a launch, compiled and loaded at its first use. The context is current.
    fn function(&self, launch: &Launch, stream: sys::CUstream) -> Result<Function> {
        let key = name_of(launch);
        self.functions.get(&key, || self.load(launch, stream, &key))
    }

    fn load(&self, launch: &Launch, stream: sys::CUstream, key: &str) -> Result<Function> {
        if is_capturing(stream)? {
            return Err(CudaError(format!(
                "{key} was first needed while a CUDA graph was being captured, when no module can be loaded: \
                 run the same call once before the capture (shapes of the same kind, same dtypes and statistics)"
            )));
        }
        let program = &launch.program;
        let nvrtc = nvrtc()?;
        let cubin = cache::compiled(nvrtc, program, nvrtc.architecture_for(self.capability)?)?;
        let name = std::ffi::CString::new(program.kernel).unwrap_or_default();
        let load = || {
            // SAFETY: a complete cubin, from NVRTC or verified by its hash.
            let module = unsafe { result::module::load_data(cubin.as_ptr().cast())? };
            // SAFETY: the module has just been loaded.
            let function = unsafe { result::module::get_function(module, name)? };
            if launch.shared > 0 {
                // SAFETY: as above, in the current context.
                unsafe { allow_all_shared(function, self.shared)? };
            }
            Ok(function)
        };
        load()
            .map(Function)
            .map_err(failed(&format!("loading {key}")))
    }
}

/// A kernel and the constants it is compiled with.
fn name_of(launch: &Launch) -> String {
    let program = &launch.program;
    format!("{} {}", program.kernel, program.definitions().join(" "))
}

/// Lets launches of a kernel ask for as much dynamic shared memory as a block of the device can have.
///
/// # Safety
/// The function is loaded and its context current.
unsafe fn allow_all_shared(
    function: sys::CUfunction,
    per_block: usize,
) -> std::result::Result<(), DriverError> {
    use sys::CUfunction_attribute_enum as Attribute;
    let mut own = 0;
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
    // SAFETY: passed on to the caller; writes one integer.
    unsafe { sys::cuFuncGetAttribute(&mut own, attribute, function).result()? };
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: passed on to the caller.
    unsafe { sys::cuFuncSetAttribute(function, attribute, per_block as i32 - own).result() }
}

fn is_capturing(stream: sys::CUstream) -> Result<bool> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream is the caller's, of the current context.
    unsafe { sys::cuStreamIsCapturing(stream, &mut status).result() }
        .map_err(failed("looking at the stream"))?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// Makes a context current for a scope, on this thread, and brings back the one before.
struct Current;

impl Current {
    fn enter(context: sys::CUcontext) -> Result<Current> {
        // SAFETY: a retained primary context.
        unsafe { sys::cuCtxPushCurrent_v2(context).result() }
            .map_err(failed("entering the device's context"))?;
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
        let function = device.function(launch, stream as sys::CUstream)?.0;
        // SAFETY: the argument is the kernel's one parameter, copied by the driver before it returns; its addresses are the caller's word.
        unsafe { queue(function, stream as sys::CUstream, launch) }
            .map_err(failed(launch.program.kernel))?;
    }
    Ok(())
}

/// Whether the device has a place for the clusters of all `launches`, as its driver says. Sizes up to 8 are common to all devices that
/// have clusters, but a part of one (MIG) may have too few multiprocessors side by side.
pub fn has_places(device: &Device, stream: usize, launches: &[Launch]) -> Result<bool> {
    if launches.iter().all(|launch| launch.cluster == 1) {
        return Ok(true);
    }
    let _current = Current::enter(device.context)?;
    for launch in launches.iter().filter(|launch| launch.cluster > 1) {
        let function = device.function(launch, stream as sys::CUstream)?.0;
        let key = format!("{} {}", name_of(launch), launch.shared);
        // SAFETY: the function is loaded in the current context.
        let has_place = || Ok(unsafe { active_clusters(function, launch) } > 0);
        if !device.places.get(&key, has_place)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How many clusters of a launch can be resident at once; 0 where the driver refuses to say.
///
/// # Safety
/// `function` is the launch's kernel, and its context is current.
unsafe fn active_clusters(function: sys::CUfunction, launch: &Launch) -> c_int {
    let mut count = 0;
    let mut attributes = [cluster_attribute(launch.cluster)];
    let config = configuration(launch, null_mut(), &mut attributes);
    // SAFETY: passed on to the caller; configuration and attributes live until the call returns, which writes one integer.
    match unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, function, &config).result() } {
        Ok(()) => count,
        Err(_) => 0,
    }
}

/// # Safety
/// As for [`launch`]; `function` is the launch's kernel, and its context is current.
unsafe fn queue(
    function: sys::CUfunction,
    stream: sys::CUstream,
    launch: &Launch,
) -> std::result::Result<(), DriverError> {
    let mut parameters = [launch.argument.as_ptr().cast_mut().cast::<c_void>()];
    let (grid, block) = ((launch.grid, 1, 1), (launch.block, 1, 1));
    if launch.cluster == 1 {
        // SAFETY: passed on to the caller.
        return unsafe {
            result::launch_kernel(
                function,
                grid,
                block,
                launch.shared,
                stream,
                &mut parameters,
            )
        };
    }
    let mut attributes = [cluster_attribute(launch.cluster)];
    let config = configuration(launch, stream, &mut attributes);
    // SAFETY: passed on to the caller; configuration, attributes and parameters live until the call returns.
    unsafe {
        sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), null_mut()).result()
    }
}

fn configuration(
    launch: &Launch,
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute; 1],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: launch.grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: launch.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: 1,
    }
}

/// That blocks come in clusters of so many.
fn cluster_attribute(blocks: u32) -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim.x = blocks;
    value.clusterDim.y = 1;
    value.clusterDim.z = 1;
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value,
    }
}
