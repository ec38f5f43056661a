//! An authority that nobody else knows, and certificates of it for 127.0.0.1, made with the `openssl` program.

use std::path::Path;
use std::process::Command;

/// Runs `openssl`, in `folder`.
fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// Makes an authority: `ca.pem`, `ca.key`.
pub fn found(folder: &Path) {
    openssl(folder, &format!("req -x509 {KEY} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"));
}

/// Makes a certificate of the authority in the same folder, for a server at 127.0.0.1: `NAME.pem`, `NAME.key`.
pub fn certify(folder: &Path, name: &str) {
    openssl(folder, &format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").expect("written");
    let sign = format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2");
    openssl(folder, &format!("{sign} -extfile names"));
}
