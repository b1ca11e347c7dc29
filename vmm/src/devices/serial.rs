//! The 16550A serial port COM1, the guest's console.
//!
//! Transmission takes no time: the transmitter is always empty, and every byte goes straight to a [`ConsoleOutput`], which
//! takes it without blocking. Input waits in a queue behind the 16-byte receive FIFO until the guest has read it. The
//! interrupt is an edge per newly pending cause, as the ISA bus has it.
//! Line speed, parity errors, break and the modem's far end are left out; modem control is looped back where the guest asks.
//! See National Semiconductor PC16550D, section 8.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};
use crate::snapshot::{RestoreError, decode, encode};

const INTERRUPT_RECEIVED: u8 = 0x01;
const INTERRUPT_TRANSMITTER_EMPTY: u8 = 0x02;
const INTERRUPT_ENABLE_MASK: u8 = 0x0f;

const IDENTIFY_NONE: u8 = 0x01;
const IDENTIFY_TRANSMITTER_EMPTY: u8 = 0x02;
const IDENTIFY_RECEIVED: u8 = 0x04;
const IDENTIFY_TIMEOUT: u8 = 0x0c;
const IDENTIFY_FIFO: u8 = 0xc0;

const FIFO_ENABLE: u8 = 0x01;
const FIFO_CLEAR_RECEIVER: u8 = 0x02;

const LINE_DIVISOR_ACCESS: u8 = 0x80;
const STATUS_DATA_READY: u8 = 0x01;
const STATUS_TRANSMITTER_IDLE: u8 = 0x60;

const MODEM_LOOPBACK: u8 = 0x10;
/// Clear to send, data set ready, carrier detect: somebody is there.
const MODEM_CONNECTED: u8 = 0xb0;

/// Input that waits at most; what comes beyond is lost.
const INPUT_LIMIT: usize = 64 * 1024;

/// Where the guest's console output goes.
pub trait ConsoleOutput: Send {
    /// Takes one byte. Must not block.
    fn put(&mut self, byte: u8);
}

/// The registers of the port, and its input queue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SerialState {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    /// The transmitter-empty interrupt is pending; reading the identification register or writing a byte clears it.
    transmitter_interrupt: bool,
    /// Bytes not yet read by the guest, those it sent itself in loopback mode among them.
    input: VecDeque<u8>,
    /// Causes for which an edge has been raised and which are still pending.
    raised: u8,
}

/// The port: its state, the line to the interrupt controller and the way out.
pub struct Serial {
    state: SerialState,
    interrupt: Box<dyn FnMut() + Send>,
    output: Box<dyn ConsoleOutput>,
}

impl Serial {
    /// Returns the port after reset. `interrupt` delivers one edge on its IRQ.
    pub fn new(interrupt: Box<dyn FnMut() + Send>, output: Box<dyn ConsoleOutput>) -> Self {
        let state = SerialState { divisor: 12, line_control: 3, ..Default::default() };
        Self { state, interrupt, output }
    }

    /// Queues bytes for the guest to read.
    pub fn receive(&mut self, bytes: &[u8]) {
        let room = INPUT_LIMIT.saturating_sub(self.state.input.len());
        self.state.input.extend(&bytes[..bytes.len().min(room)]);
        self.update_interrupt();
    }

    fn pending(&self) -> u8 {
        let received = if self.state.input.is_empty() { 0 } else { INTERRUPT_RECEIVED };
        let empty = if self.state.transmitter_interrupt { INTERRUPT_TRANSMITTER_EMPTY } else { 0 };
        (received | empty) & self.state.interrupt_enable
    }

    /// Raises an edge for every cause that was not pending before.
    fn update_interrupt(&mut self) {
        let pending = self.pending();
        let fresh = pending & !self.state.raised;
        self.state.raised = pending;
        if fresh != 0 {
            (self.interrupt)();
        }
    }

    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        let fifo = self.state.fifo_control & FIFO_ENABLE != 0;
        let cause = if pending & INTERRUPT_RECEIVED != 0 {
            if fifo { IDENTIFY_TIMEOUT } else { IDENTIFY_RECEIVED }
        } else if pending & INTERRUPT_TRANSMITTER_EMPTY != 0 {
            self.state.transmitter_interrupt = false;
            IDENTIFY_TRANSMITTER_EMPTY
        } else {
            IDENTIFY_NONE
        };
        self.update_interrupt();
        if fifo { cause | IDENTIFY_FIFO } else { cause }
    }

    fn take_input(&mut self) -> u8 {
        let byte = self.state.input.pop_front().unwrap_or(0);
        // A handler that reads one byte an interrupt still gets the next one.
        self.state.raised &= !INTERRUPT_RECEIVED;
        self.update_interrupt();
        byte
    }

    fn transmit(&mut self, byte: u8) {
        if self.state.modem_control & MODEM_LOOPBACK != 0 {
            self.receive(&[byte]);
        } else {
            self.output.put(byte);
        }
        self.state.transmitter_interrupt = true;
        self.state.raised &= !INTERRUPT_TRANSMITTER_EMPTY;
        self.update_interrupt();
    }

    fn modem_status(&self) -> u8 {
        let control = self.state.modem_control;
        if control & MODEM_LOOPBACK == 0 {
            return MODEM_CONNECTED;
        }
        // Loopback wires DTR to DSR, RTS to CTS, OUT1 to RI and OUT2 to DCD.
        ((control & 1) << 5) | ((control & 2) << 3) | ((control & 4) << 4) | ((control & 8) << 4)
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let divisor_access = self.state.line_control & LINE_DIVISOR_ACCESS != 0;
        match register {
            0 if divisor_access => self.state.divisor as u8,
            0 => self.take_input(),
            1 if divisor_access => (self.state.divisor >> 8) as u8,
            1 => self.state.interrupt_enable,
            2 => self.identify(),
            3 => self.state.line_control,
            4 => self.state.modem_control,
            5 if self.state.input.is_empty() => STATUS_TRANSMITTER_IDLE,
            5 => STATUS_TRANSMITTER_IDLE | STATUS_DATA_READY,
            6 => self.modem_status(),
            7 => self.state.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let divisor_access = self.state.line_control & LINE_DIVISOR_ACCESS != 0;
        match register {
            0 if divisor_access => {
                self.state.divisor = self.state.divisor & 0xff00 | u16::from(value)
            }
            0 => self.transmit(value),
            1 if divisor_access => {
                self.state.divisor = self.state.divisor & 0xff | u16::from(value) << 8
            }
            1 => {
                let newly = value & !self.state.interrupt_enable;
                self.state.interrupt_enable = value & INTERRUPT_ENABLE_MASK;
                if newly & INTERRUPT_TRANSMITTER_EMPTY != 0 {
                    self.state.transmitter_interrupt = true;
                }
                self.update_interrupt();
            }
            2 => {
                self.state.fifo_control = value & !FIFO_CLEAR_RECEIVER;
                // Drivers clear the FIFO when they open the port: what a person typed ahead is kept, the probe's echo is not.
                if value & FIFO_CLEAR_RECEIVER != 0
                    && self.state.modem_control & MODEM_LOOPBACK != 0
                {
                    self.state.input.clear();
                }
                self.update_interrupt();
            }
            3 => self.state.line_control = value,
            4 => self.state.modem_control = value & 0x1f,
            7 => self.state.scratch = value,
            _ => {}
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.read_register(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let [byte] = data {
            self.write_register(offset, *byte);
        }
        Action::None
    }

    fn save(&self) -> Vec<u8> {
        encode(&self.state)
    }

    /// Raises nothing: an edge that was raised before is in the saved interrupt controller.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.state = decode(state)?;
        self.state.input.truncate(INPUT_LIMIT);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl ConsoleOutput for Sink {
        fn put(&mut self, byte: u8) {
            self.0.lock().unwrap().push(byte);
        }
    }

    fn port() -> (Serial, Sink, Arc<AtomicUsize>) {
        let sink = Sink::default();
        let edges = Arc::new(AtomicUsize::new(0));
        let counter = edges.clone();
        let raise = move || {
            counter.fetch_add(1, SeqCst);
        };
        (Serial::new(Box::new(raise), Box::new(sink.clone())), sink, edges)
    }

    fn read(port: &mut Serial, register: u64) -> u8 {
        let mut data = [0xff];
        BusDevice::read(port, register, &mut data);
        data[0]
    }

    fn write(port: &mut Serial, register: u64, value: u8) {
        assert_eq!(BusDevice::write(port, register, &[value]), Action::None);
    }

    #[test]
    fn polled_output_arrives_and_raises_nothing() {
        let (mut port, sink, edges) = port();
        for byte in b"ok\n" {
            assert_eq!(read(&mut port, 5) & 0x20, 0x20);
            write(&mut port, 0, *byte);
        }
        assert_eq!(*sink.0.lock().unwrap(), b"ok\n");
        assert_eq!(edges.load(SeqCst), 0);
    }

    #[test]
    fn enabling_the_transmitter_interrupt_raises_it_once_until_identified() {
        let (mut port, _, edges) = port();
        write(&mut port, 1, 2);
        assert_eq!(edges.load(SeqCst), 1);
        assert_eq!(read(&mut port, 2) & 0x0f, 2);
        assert_eq!(read(&mut port, 2) & 0x0f, 1, "identifying clears it");
        write(&mut port, 0, b'x');
        assert_eq!(edges.load(SeqCst), 2, "the byte is gone at once");
    }

    #[test]
    fn input_interrupts_and_is_read_in_order() {
        let (mut port, _, edges) = port();
        port.receive(b"ab");
        assert_eq!(edges.load(SeqCst), 0, "not enabled yet");
        write(&mut port, 2, 1);
        write(&mut port, 1, 1);
        assert_eq!(edges.load(SeqCst), 1);
        assert_eq!(read(&mut port, 2), 0xcc);
        assert_eq!((read(&mut port, 5) & 1, read(&mut port, 0)), (1, b'a'));
        assert_eq!((read(&mut port, 5) & 1, read(&mut port, 0)), (1, b'b'));
        assert_eq!((read(&mut port, 5) & 1, read(&mut port, 2)), (0, 0xc1));
    }

    #[test]
    fn driver_probe_finds_a_16550a() {
        let (mut port, sink, _) = port();
        write(&mut port, 7, 0x5a);
        assert_eq!(read(&mut port, 7), 0x5a);
        write(&mut port, 2, 1);
        assert_eq!(read(&mut port, 2) & 0xc0, 0xc0);
        write(&mut port, 4, 0x1a);
        assert_eq!(read(&mut port, 6) & 0xf0, 0x90, "loopback of RTS and OUT2");
        write(&mut port, 0, b'?');
        assert_eq!(read(&mut port, 0), b'?');
        assert!(sink.0.lock().unwrap().is_empty());
    }

    #[test]
    fn divisor_latch_is_apart_from_data() {
        let (mut port, sink, _) = port();
        write(&mut port, 3, 0x83);
        write(&mut port, 0, 1);
        write(&mut port, 1, 0);
        assert_eq!(read(&mut port, 0), 1);
        write(&mut port, 3, 0x03);
        assert_eq!(read(&mut port, 1), 0);
        assert!(sink.0.lock().unwrap().is_empty());
    }
}
