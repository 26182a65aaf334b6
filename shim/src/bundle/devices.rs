//! Devices of config.json as [`DeviceSpec`]s (config-linux.md "Devices").

use std::path::Path;

use moat_protocol::workload_spec::{DeviceKind, DeviceSpec};

use super::config::{Config, Device, Mount};
use super::validate::{ValidateError, bad_value};

/// config-linux.md "Default Devices"; `/dev/console` and `/dev/ptmx` are no nodes.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

pub(super) fn devices(config: &Config) -> Result<Vec<DeviceSpec>, ValidateError> {
    // A bind mount on /dev brings its own nodes, and they are the host's: nothing is made there.
    let is_bind = |mount: &Mount| {
        mount.kind == "bind"
            || mount
                .options
                .iter()
                .any(|option| option == "bind" || option == "rbind")
    };
    if config
        .mounts
        .iter()
        .any(|mount| mount.destination.trim_end_matches('/') == "/dev" && is_bind(mount))
    {
        return Ok(Vec::new());
    }
    let mut specs: Vec<DeviceSpec> = DEFAULT_DEVICES
        .iter()
        .map(|(path, major, minor)| DeviceSpec {
            path: (*path).to_owned(),
            kind: DeviceKind::Character {
                major: *major,
                minor: *minor,
            },
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for entry in &config.linux.devices {
        let spec = device(entry)?;
        specs.retain(|known| known.path != spec.path);
        specs.push(spec);
    }
    Ok(specs)
}

fn device(device: &Device) -> Result<DeviceSpec, ValidateError> {
    if !Path::new(&device.path).is_absolute() {
        return Err(bad_value(
            "linux.devices[].path",
            &device.path,
            "an absolute path is needed",
        ));
    }
    let number = |number: Option<i64>, field: &'static str| -> Result<u32, ValidateError> {
        let number = number.ok_or(ValidateError::Missing { field })?;
        u32::try_from(number).map_err(|_| bad_value(field, number.to_string(), "no such device number"))
    };
    let major = || number(device.major, "linux.devices[].major");
    let minor = || number(device.minor, "linux.devices[].minor");
    let kind = match device.kind.as_str() {
        "c" | "u" => DeviceKind::Character {
            major: major()?,
            minor: minor()?,
        },
        "b" => DeviceKind::Block {
            major: major()?,
            minor: minor()?,
        },
        "p" => DeviceKind::Fifo,
        other => return Err(bad_value("linux.devices[].type", other, "c, u, b or p is needed")),
    };
    Ok(DeviceSpec {
        path: device.path.clone(),
        kind,
        mode: device.file_mode.unwrap_or(0o666) & 0o7777,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    })
}
