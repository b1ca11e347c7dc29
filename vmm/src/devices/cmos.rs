//! The CMOS real-time clock and its battery-backed memory (Motorola MC146818), index port 0x70 and data port 0x71.
//!
//! The clock shows the wall clock that it is given, in UTC; what the guest sets is remembered as a difference for this run.
//! Memory sizes stand where a PC's firmware leaves them. Alarm and periodic interrupts are left out: a guest that waits for
//! them falls back to polling.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};
use crate::snapshot::{RestoreError, decode, encode};

/// Returns the time of day.
pub type WallClock = Box<dyn Fn() -> SystemTime + Send>;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Where the century is; the FADT says so.
pub const CENTURY: u8 = 0x32;

const STATUS_B_SET: u8 = 0x80;
const STATUS_B_BINARY: u8 = 0x04;
const STATUS_B_24_HOURS: u8 = 0x02;

const KIB: u64 = 1 << 10;

/// The clock and its memory.
pub struct Cmos {
    index: u8,
    memory: [u8; 128],
    /// Seconds that the guest's clock is ahead of the wall clock.
    ahead: i64,
    clock: WallClock,
}

impl Cmos {
    /// Returns the clock of a machine with `low` bytes of RAM below 4 GiB and `high` above.
    pub fn new(clock: WallClock, low: u64, high: u64) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(STATUS_A)] = 0x26;
        memory[usize::from(STATUS_B)] = STATUS_B_24_HOURS;
        memory[usize::from(STATUS_D)] = 0x80;
        let mut put = |at: usize, value: u64, bytes: usize| {
            memory[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        };
        let extended = (low.saturating_sub(1 << 20) / KIB).min(0xffff);
        put(0x15, 640, 2);
        put(0x17, extended, 2);
        put(0x30, extended, 2);
        put(0x34, (low.saturating_sub(16 << 20) / (64 * KIB)).min(0xffff), 2);
        put(0x5b, (high / (64 * KIB)).min(0xff_ffff), 3);
        Self { index: 0, memory, ahead: 0, clock }
    }

    /// Sets the wall clock that is shown.
    pub fn set_clock(&mut self, clock: WallClock) {
        self.clock = clock;
    }

    fn now(&self) -> i64 {
        let wall = match (self.clock)().duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_secs() as i64,
            Err(before) => -(before.duration().as_secs() as i64),
        };
        wall.saturating_add(self.ahead)
    }

    fn is_set_mode(&self) -> bool {
        self.memory[usize::from(STATUS_B)] & STATUS_B_SET != 0
    }

    /// Writes the present time into the time registers, in the encoding the guest chose.
    fn latch_time(&mut self) {
        if self.is_set_mode() {
            return;
        }
        let time = Civil::from_unix(self.now());
        let status = self.memory[usize::from(STATUS_B)];
        let encode = |value: u8| {
            if status & STATUS_B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
        };
        let hours = if status & STATUS_B_24_HOURS != 0 {
            encode(time.hour)
        } else {
            encode((time.hour + 11) % 12 + 1) | if time.hour >= 12 { 0x80 } else { 0 }
        };
        for (register, value) in [
            (SECONDS, encode(time.second)),
            (MINUTES, encode(time.minute)),
            (HOURS, hours),
            (DAY_OF_WEEK, encode(time.day_of_week)),
            (DAY, encode(time.day)),
            (MONTH, encode(time.month)),
            (YEAR, encode((time.year % 100) as u8)),
            (CENTURY, encode((time.year / 100) as u8)),
        ] {
            self.memory[usize::from(register)] = value;
        }
    }

    /// Takes over the time that the guest has written into the time registers.
    fn set_time(&mut self) {
        let status = self.memory[usize::from(STATUS_B)];
        let decode = |value: u8| {
            if status & STATUS_B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
        };
        let field = |register: u8| decode(self.memory[usize::from(register)]);
        let raw_hours = self.memory[usize::from(HOURS)];
        let hour = if status & STATUS_B_24_HOURS != 0 {
            decode(raw_hours)
        } else {
            decode(raw_hours & 0x7f) % 12 + if raw_hours & 0x80 != 0 { 12 } else { 0 }
        };
        let time = Civil {
            year: u32::from(field(CENTURY)) * 100 + u32::from(field(YEAR)),
            month: field(MONTH).clamp(1, 12),
            day: field(DAY).clamp(1, 31),
            day_of_week: 1,
            hour,
            minute: field(MINUTES),
            second: field(SECONDS),
        };
        self.ahead = 0;
        self.ahead = time.to_unix() - self.now();
    }

    fn read_data(&mut self) -> u8 {
        match self.index {
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK | DAY | MONTH | YEAR | CENTURY => {
                self.latch_time()
            }
            STATUS_C => return 0,
            _ => {}
        }
        self.memory[usize::from(self.index)]
    }

    fn write_data(&mut self, value: u8) {
        match self.index {
            STATUS_C | STATUS_D => {}
            // The update-in-progress bit is read-only and never set.
            STATUS_A => self.memory[usize::from(STATUS_A)] = value & 0x7f,
            STATUS_B => {
                let was_set = self.is_set_mode();
                if !was_set {
                    self.latch_time();
                }
                self.memory[usize::from(STATUS_B)] = value;
                if was_set && !self.is_set_mode() {
                    self.set_time();
                }
            }
            SECONDS | MINUTES | HOURS | DAY_OF_WEEK | DAY | MONTH | YEAR | CENTURY => {
                self.latch_time();
                self.memory[usize::from(self.index)] = value;
                if !self.is_set_mode() {
                    self.set_time();
                }
            }
            _ => self.memory[usize::from(self.index)] = value,
        }
    }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (1, [byte]) = (offset, data) {
            *byte = self.read_data();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        match (offset, data) {
            // The top bit masks the NMI on a PC.
            (0, [byte]) => self.index = byte & 0x7f,
            (1, [byte]) => self.write_data(*byte),
            _ => {}
        }
        Action::None
    }

    fn save(&self) -> Vec<u8> {
        encode(&Saved { index: self.index, memory: self.memory.to_vec(), ahead: self.ahead })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let saved: Saved = decode(state)?;
        self.memory = saved.memory.try_into().map_err(|_| RestoreError::new("not 128 bytes"))?;
        (self.index, self.ahead) = (saved.index & 0x7f, saved.ahead);
        Ok(())
    }
}

/// What is saved: the registers. The time is the wall clock's, with the difference that the guest has set.
#[derive(Serialize, Deserialize)]
struct Saved {
    index: u8,
    memory: Vec<u8>,
    ahead: i64,
}

/// A moment in the Gregorian calendar, UTC.
#[derive(Debug, PartialEq, Eq)]
struct Civil {
    year: u32,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    day_of_week: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

/// Days from 0000-03-01 to 1970-01-01: years that begin in March put the leap day last.
const EPOCH_DAYS: i64 = 719_468;
const DAYS_PER_400_YEARS: i64 = 146_097;

impl Civil {
    fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let of_day = seconds.rem_euclid(86_400);
        let shifted = days + EPOCH_DAYS;
        let cycle = shifted.div_euclid(DAYS_PER_400_YEARS);
        let in_cycle = shifted.rem_euclid(DAYS_PER_400_YEARS);
        let year_in_cycle =
            (in_cycle - in_cycle / 1460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
        let in_year = in_cycle - (365 * year_in_cycle + year_in_cycle / 4 - year_in_cycle / 100);
        let month_from_march = (5 * in_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = cycle * 400 + year_in_cycle + i64::from(month <= 2);
        Self {
            year: year.clamp(0, 9999) as u32,
            month: month as u8,
            day: (in_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            day_of_week: ((days + 4).rem_euclid(7) + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    fn to_unix(&self) -> i64 {
        let year = i64::from(self.year) - i64::from(self.month <= 2);
        let month_from_march = (i64::from(self.month) + 9) % 12;
        let in_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        let in_cycle = year.rem_euclid(400) * 365 + year.rem_euclid(400) / 4
            - year.rem_euclid(400) / 100
            + in_year;
        let days = year.div_euclid(400) * DAYS_PER_400_YEARS + in_cycle - EPOCH_DAYS;
        days * 86_400
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }
}

/// Returns the wall clock of the host.
pub fn host_clock() -> WallClock {
    Box::new(SystemTime::now)
}

/// Returns a clock that stands still, for tests.
pub fn fixed_clock(unix_seconds: u64) -> WallClock {
    Box::new(move || UNIX_EPOCH + Duration::from_secs(unix_seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:58:07 UTC, a Thursday.
    const LEAP_DAY: u64 = 1_709_251_087;

    fn get(cmos: &mut Cmos, register: u8) -> u8 {
        cmos.write(0, &[register]);
        let mut data = [0xff];
        cmos.read(1, &mut data);
        data[0]
    }

    fn put(cmos: &mut Cmos, register: u8, value: u8) {
        cmos.write(0, &[register]);
        cmos.write(1, &[value]);
    }

    #[test]
    fn clock_shows_utc_in_bcd() {
        let mut cmos = Cmos::new(fixed_clock(LEAP_DAY), 1 << 30, 0);
        let shown: Vec<u8> = [CENTURY, YEAR, MONTH, DAY, DAY_OF_WEEK, HOURS, MINUTES, SECONDS]
            .map(|r| get(&mut cmos, r))
            .to_vec();
        assert_eq!(shown, [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x58, 0x07]);
    }

    #[test]
    fn binary_and_twelve_hour_modes_are_honoured() {
        let mut cmos = Cmos::new(fixed_clock(LEAP_DAY), 1 << 30, 0);
        put(&mut cmos, STATUS_B, STATUS_B_BINARY);
        assert_eq!((get(&mut cmos, HOURS), get(&mut cmos, MINUTES)), (0x8b, 58));
    }

    #[test]
    fn guest_may_set_the_clock() {
        let mut cmos = Cmos::new(fixed_clock(LEAP_DAY), 1 << 30, 0);
        put(&mut cmos, STATUS_B, STATUS_B_SET | STATUS_B_24_HOURS);
        for (register, value) in
            [(YEAR, 0x30), (MONTH, 0x01), (DAY, 0x02), (HOURS, 0x03), (MINUTES, 0), (SECONDS, 0x59)]
        {
            put(&mut cmos, register, value);
        }
        put(&mut cmos, STATUS_B, STATUS_B_24_HOURS);
        let shown: Vec<u8> =
            [YEAR, MONTH, DAY, DAY_OF_WEEK, HOURS, SECONDS].map(|r| get(&mut cmos, r)).to_vec();
        assert_eq!(shown, [0x30, 0x01, 0x02, 0x04, 0x03, 0x59]);
    }

    #[test]
    fn calendar_inverts_over_centuries() {
        for day in (-150_000..150_000i64).step_by(97) {
            let seconds = day * 86_400 + 12_345;
            if seconds > -62_000_000_000 {
                assert_eq!(Civil::from_unix(seconds).to_unix(), seconds);
            }
        }
    }

    #[test]
    fn memory_sizes_stand_where_firmware_looks() {
        let mut cmos = Cmos::new(fixed_clock(0), 3 << 30, 5 << 30);
        let above_16m = u16::from_le_bytes([get(&mut cmos, 0x34), get(&mut cmos, 0x35)]);
        assert_eq!(u64::from(above_16m) * 65536 + (16 << 20), 3 << 30);
        let high = u32::from_le_bytes([
            get(&mut cmos, 0x5b),
            get(&mut cmos, 0x5c),
            get(&mut cmos, 0x5d),
            0,
        ]);
        assert_eq!(u64::from(high) * 65536, 5 << 30);
    }
}
