//! Where a model runs: the processor, or what an execution provider of ONNX Runtime reaches.

use std::fmt;
use std::str::FromStr;

use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};

use crate::error::StartError;
use crate::inference::runtime;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    #[default]
    Cpu,
    /// The number of the GPU.
    Cuda(u16),
    /// The number of the GPU.
    TensorRt(u16),
    OpenVino,
}

/// How devices are written.
const WRITTEN: &str = "\"cpu\", \"cuda:0\", \"tensorrt\", \"tensorrt:0\" or \"openvino\"";

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let (kind, number) = text.split_once(':').map_or((text, None), |(kind, number)| (kind, Some(number)));
        let number = number.map(str::parse).transpose();
        match (kind, number) {
            ("cpu", Ok(None)) => Ok(Device::Cpu),
            ("openvino", Ok(None)) => Ok(Device::OpenVino),
            ("cuda", Ok(number)) => Ok(Device::Cuda(number.unwrap_or(0))),
            ("tensorrt", Ok(number)) => Ok(Device::TensorRt(number.unwrap_or(0))),
            _ => Err(format!("`{text}` is no device; write {WRITTEN}")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => formatter.write_str("cpu"),
            Device::Cuda(number) => write!(formatter, "cuda:{number}"),
            Device::TensorRt(number) => write!(formatter, "tensorrt:{number}"),
            Device::OpenVino => formatter.write_str("openvino"),
        }
    }
}

impl Device {
    /// Whether the ONNX Runtime that is loaded was built for this device. Every build has the processor, so that one is
    /// not even loaded for it.
    ///
    /// # Errors
    /// Where it was not, with what to do.
    pub fn check(self) -> Result<(), StartError> {
        let (available, name, package) = match self {
            Device::Cpu => return Ok(()),
            Device::Cuda(_) => {
                runtime::environment()?;
                (ep::CUDA::is_available(), ep::CUDA::NAME, "onnxruntime-gpu")
            }
            Device::TensorRt(_) => {
                runtime::environment()?;
                (ep::TensorRT::is_available(), ep::TensorRT::NAME, "onnxruntime-gpu")
            }
            Device::OpenVino => {
                runtime::environment()?;
                (ep::OpenVINO::is_available(), ep::OpenVINO::NAME, "onnxruntime-openvino")
            }
        };
        if available.is_ok_and(|available| available) {
            return Ok(());
        }
        Err(StartError::new(format!("device `{self}`: the ONNX Runtime that is loaded has no {name}")).hint(format!(
            "set {} to the library of a build that has it, such as that of the Python package `{package}`, or leave \
             `device` out to use the processor",
            runtime::LIBRARY_VARIABLE
        )))
    }

    /// What a session asks ONNX Runtime for; nothing for the processor. A provider that does not start is an error, not
    /// a silent fall back.
    pub(super) fn providers(self) -> Vec<ExecutionProviderDispatch> {
        let provider = match self {
            Device::Cpu => return Vec::new(),
            Device::Cuda(number) => ep::CUDA::default().with_device_id(i32::from(number)).build(),
            Device::TensorRt(number) => ep::TensorRT::default().with_device_id(i32::from(number)).build(),
            Device::OpenVino => ep::OpenVINO::default().build(),
        };
        vec![provider.error_on_failure()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:7", Device::Cuda(7)),
            ("tensorrt:1", Device::TensorRt(1)),
            ("openvino", Device::OpenVino),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "openvino:0", "CUDA"] {
            assert!(wrong.parse::<Device>().unwrap_err().contains("cuda:0"), "{wrong}");
        }
    }

    /// The library that `script/setup` installs is built for the processor alone.
    #[test]
    fn a_device_that_the_library_has_not_is_named() {
        assert!(Device::Cpu.check().is_ok());
        for (device, provider) in [
            (Device::Cuda(0), "CUDAExecutionProvider"),
            (Device::TensorRt(0), "TensorrtExecutionProvider"),
            (Device::OpenVino, "OpenVINOExecutionProvider"),
        ] {
            let error = device.check().unwrap_err();
            assert!(error.message.contains(provider) && error.message.contains(&device.to_string()), "{error}");
            assert!(error.hint.unwrap().contains("ORT_DYLIB_PATH"));
        }
    }
}
