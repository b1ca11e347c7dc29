//! The packets of SFTP version 3 that a client of files and trees needs: draft-ietf-secsh-filexfer-02, and the
//! extension `posix-rename@openssh.com` of OpenSSH's `PROTOCOL`. Names are bytes, as they are in the guest.

use super::SftpError;

/// The version that every server speaks.
pub(super) const VERSION: u32 = 3;
/// The largest packet that is taken: a reply to a read of ours, or a page of names.
pub(super) const MAX_PACKET: usize = 256 << 10;

/// The extension for a rename that replaces.
pub(super) const POSIX_RENAME: &[u8] = b"posix-rename@openssh.com";

/// What a request asks for: SSH_FXP_ numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Init = 1,
    Open = 3,
    Close = 4,
    Read = 5,
    Write = 6,
    Lstat = 7,
    Setstat = 9,
    Fsetstat = 10,
    Opendir = 11,
    Readdir = 12,
    Remove = 13,
    Mkdir = 14,
    Stat = 17,
    Rename = 18,
    Readlink = 19,
    Symlink = 20,
    Extended = 200,
}

const REPLY_VERSION: u8 = 2;
const REPLY_STATUS: u8 = 101;
const REPLY_HANDLE: u8 = 102;
const REPLY_DATA: u8 = 103;
const REPLY_NAME: u8 = 104;
const REPLY_ATTRS: u8 = 105;

/// The flags of an open (SSH_FXF_).
pub(super) const OPEN_READ: u32 = 1;
/// Write a file that is not there yet.
pub(super) const OPEN_NEW: u32 = 0x2 | 0x8 | 0x20;

const ATTR_SIZE: u32 = 1;
const ATTR_OWNER: u32 = 2;
const ATTR_MODE: u32 = 4;
const ATTR_TIMES: u32 = 8;
const ATTR_EXTENDED: u32 = 0x8000_0000;

/// Codes of a status (SSH_FX_).
pub(crate) const OK: u32 = 0;
pub(crate) const EOF: u32 = 1;
pub(crate) const NO_SUCH_FILE: u32 = 2;

/// What is known of a file, as far as it is looked at here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// In bytes.
    pub(crate) size: Option<u64>,
    /// User and group.
    pub(crate) owner: Option<(u32, u32)>,
    /// `st_mode`: permissions and type.
    pub(crate) mode: Option<u32>,
}

const TYPE: u32 = 0o170_000;

impl Attributes {
    pub(crate) fn is_folder(&self) -> bool {
        self.mode.is_some_and(|mode| mode & TYPE == 0o040_000)
    }

    pub(crate) fn is_link(&self) -> bool {
        self.mode.is_some_and(|mode| mode & TYPE == 0o120_000)
    }

    pub(crate) fn is_file(&self) -> bool {
        self.mode.is_some_and(|mode| mode & TYPE == 0o100_000)
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Status { code: u32, message: String },
    Handle(Vec<u8>),
    Data(Vec<u8>),
    Names(Vec<(Vec<u8>, Attributes)>),
    Attributes(Attributes),
}

/// A request under construction: its length is filled in at the end.
pub(super) struct Request<'o> {
    out: &'o mut Vec<u8>,
    begin: usize,
}

impl<'o> Request<'o> {
    /// Begins a request of this number at the end of `out`.
    pub(super) fn new(out: &'o mut Vec<u8>, kind: Kind, id: u32) -> Request<'o> {
        let begin = out.len();
        out.extend_from_slice(&[0; 4]);
        out.push(kind as u8);
        out.extend_from_slice(&id.to_be_bytes());
        Request { out, begin }
    }

    pub(super) fn number(self, number: u32) -> Request<'o> {
        self.out.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(super) fn long(self, number: u64) -> Request<'o> {
        self.out.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(super) fn string(self, bytes: &[u8]) -> Request<'o> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let request = self.number(length);
        request.out.extend_from_slice(bytes);
        request
    }

    pub(super) fn attributes(self, attributes: &Attributes) -> Request<'o> {
        let flag = |flag, is_there| if is_there { flag } else { 0 };
        let mut request = self.number(
            flag(ATTR_OWNER, attributes.owner.is_some())
                | flag(ATTR_MODE, attributes.mode.is_some()),
        );
        if let Some((user, group)) = attributes.owner {
            request = request.number(user).number(group);
        }
        match attributes.mode {
            Some(mode) => request.number(mode),
            None => request,
        }
    }

    pub(super) fn finish(self) {
        let length = u32::try_from(self.out.len() - self.begin - 4).unwrap_or(u32::MAX);
        self.out[self.begin..self.begin + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// The greeting, which has the version in place of a number.
pub(super) fn init(out: &mut Vec<u8>) {
    Request::new(out, Kind::Init, VERSION).finish();
}

/// Takes one packet off the front of `input`; none while it is not all there.
pub(super) fn take_packet(input: &mut Vec<u8>) -> Result<Option<Vec<u8>>, SftpError> {
    let Some(length) = input.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > MAX_PACKET {
        return Err(SftpError::protocol(format!("a packet of {length} bytes")));
    }
    if input.len() < 4 + length {
        return Ok(None);
    }
    let packet = input[4..4 + length].to_vec();
    input.drain(..4 + length);
    Ok(Some(packet))
}

/// Reads the answer to the greeting; whether the server has the rename that replaces.
pub(super) fn version(packet: &[u8]) -> Result<bool, SftpError> {
    let mut fields = Fields(packet);
    if fields.byte()? != REPLY_VERSION {
        return Err(SftpError::protocol("no version in answer to the greeting"));
    }
    let version = fields.number()?;
    if version < VERSION {
        return Err(SftpError::protocol(format!("it speaks version {version}")));
    }
    let mut renames = false;
    while !fields.0.is_empty() {
        renames |= fields.string()? == POSIX_RENAME;
        fields.string()?;
    }
    Ok(renames)
}

/// Reads an answer and the number of its request.
pub(super) fn reply(packet: &[u8]) -> Result<(u32, Reply), SftpError> {
    let mut fields = Fields(packet);
    let kind = fields.byte()?;
    let id = fields.number()?;
    let reply = match kind {
        REPLY_STATUS => {
            let code = fields.number()?;
            // Some servers end after the code.
            let message = fields.string().unwrap_or_default();
            let message = String::from_utf8_lossy(&message[..message.len().min(1024)]);
            Reply::Status { code, message: message.chars().filter(|c| !c.is_control()).collect() }
        }
        REPLY_HANDLE => Reply::Handle(fields.string()?.to_vec()),
        REPLY_DATA => Reply::Data(fields.string()?.to_vec()),
        REPLY_NAME => {
            let count = fields.number()?;
            let mut names = Vec::new();
            for _ in 0..count {
                let name = fields.string()?.to_vec();
                fields.string()?;
                names.push((name, fields.attributes()?));
            }
            Reply::Names(names)
        }
        REPLY_ATTRS => Reply::Attributes(fields.attributes()?),
        kind => return Err(SftpError::protocol(format!("a packet of type {kind}"))),
    };
    Ok((id, reply))
}

/// What is left to read of a packet.
struct Fields<'p>(&'p [u8]);

impl<'p> Fields<'p> {
    fn take(&mut self, length: usize) -> Result<&'p [u8], SftpError> {
        let taken = self.0.get(..length);
        let taken = taken.ok_or_else(|| SftpError::protocol("a packet that ends too early"))?;
        self.0 = &self.0[length..];
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, SftpError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32, SftpError> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn string(&mut self) -> Result<&'p [u8], SftpError> {
        let length = self.number()?;
        self.take(length as usize)
    }

    fn attributes(&mut self) -> Result<Attributes, SftpError> {
        let flags = self.number()?;
        let mut attributes = Attributes::default();
        if flags & ATTR_SIZE != 0 {
            attributes.size = Some(u64::from(self.number()?) << 32 | u64::from(self.number()?));
        }
        if flags & ATTR_OWNER != 0 {
            attributes.owner = Some((self.number()?, self.number()?));
        }
        if flags & ATTR_MODE != 0 {
            attributes.mode = Some(self.number()?);
        }
        if flags & ATTR_TIMES != 0 {
            self.take(8)?;
        }
        if flags & ATTR_EXTENDED != 0 {
            for _ in 0..self.number()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_laid_out_as_the_draft_says() {
        let mut out = Vec::new();
        init(&mut out);
        assert_eq!(out, [0, 0, 0, 5, 1, 0, 0, 0, 3]);
        out.clear();
        let attributes = Attributes { size: None, owner: Some((1, 2)), mode: Some(0o644) };
        Request::new(&mut out, Kind::Setstat, 7).string(b"/a").attributes(&attributes).finish();
        let expected =
            b"\0\0\0\x1b\x09\0\0\0\x07\0\0\0\x02/a\0\0\0\x06\0\0\0\x01\0\0\0\x02\0\0\x01\xa4";
        assert_eq!(out, expected);
    }

    #[test]
    fn replies_are_read_and_what_is_cut_is_refused() {
        let packet = b"\x68\0\0\0\x09\0\0\0\x01\0\0\0\x01a\0\0\0\x01l\0\0\0\x0d\0\0\0\x01\0\0\0\x02\0\0\x81\xa4\0\0\0\0\0\0\0\0";
        let (id, names) = reply(packet).expect("names");
        let attributes =
            Attributes { size: Some((1 << 32) + 2), owner: None, mode: Some(0o100_644) };
        assert_eq!((id, names), (9, Reply::Names(vec![(b"a".to_vec(), attributes)])));
        for cut in 0..packet.len() {
            assert!(reply(&packet[..cut]).is_err(), "{cut}");
        }
        // A count that no packet could hold costs nothing.
        assert!(reply(b"\x68\0\0\0\x09\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn packets_are_taken_whole_and_huge_ones_are_refused() {
        let mut input = b"\0\0\0\x02ab\0\0".to_vec();
        assert_eq!(take_packet(&mut input).expect("packet"), Some(b"ab".to_vec()));
        assert_eq!(take_packet(&mut input).expect("none"), None);
        assert!(take_packet(&mut b"\xff\xff\xff\xff".to_vec()).is_err());
        assert!(take_packet(&mut b"\0\0\0\0".to_vec()).is_err());
    }
}
