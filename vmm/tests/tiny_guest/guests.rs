//! Guests of a few instructions, as bytes with their listing (NASM syntax).
//!
//! All but [`SECOND`] are 64-bit code at 0x100000, entered as the Linux boot protocol enters a kernel. The machine goes off (S5) when
//! 0x3400 (sleep type 5 and sleep enable) is written to port 0x604.

/// Writes "Hello" byte by byte and "\r\n" by one string instruction, then goes to S5.
#[rustfmt::skip]
pub const SERIAL_AND_OFF: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03,                   // 00: mov dx, 0x3f8
    0xb0, 0x48,                               // 04: mov al, 'H'
    0xee,                                     // 06: out dx, al
    0xb0, 0x69,                               // 07: mov al, 'i'
    0xee,                                     // 09: out dx, al
    0x48, 0x8d, 0x35, 0x15, 0x00, 0x00, 0x00, // 0a: lea rsi, [rel text]
    0xb9, 0x03, 0x00, 0x00, 0x00,             // 11: mov ecx, 3
    0xfc,                                     // 16: cld
    0xf3, 0x6e,                               // 17: rep outsb
    0x66, 0xba, 0x04, 0x06,                   // 19: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                   // 1d: mov ax, 0x3400
    0x66, 0xef,                               // 21: out dx, ax
    0xf4,                                     // 23: hlt
    0xeb, 0xfd,                               // 24: jmp .halt
    0x21, 0x0d, 0x0a,                         // 26: db '!', 13, 10
];

/// Reads 4 bytes from port 0x510, adds 1, writes them to 0xe8001000; reads 8 bytes from 0xe8001008, writes its upper 4 to port 0x510; S5.
#[rustfmt::skip]
pub const ROUND_TRIP: &[u8] = &[
    0x66, 0xba, 0x10, 0x05,       // 00: mov dx, 0x510
    0xed,                         // 04: in eax, dx
    0xff, 0xc0,                   // 05: inc eax
    0xbb, 0x00, 0x10, 0x00, 0xe8, // 07: mov ebx, 0xe8001000
    0x89, 0x03,                   // 0c: mov [rbx], eax
    0x48, 0x8b, 0x43, 0x08,       // 0e: mov rax, [rbx+8]
    0x48, 0xc1, 0xe8, 0x20,       // 12: shr rax, 32
    0xef,                         // 16: out dx, eax
    0x66, 0xba, 0x04, 0x06,       // 17: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,       // 1b: mov ax, 0x3400
    0x66, 0xef,                   // 1f: out dx, ax
    0xf4,                         // 21: hlt
    0xeb, 0xfd,                   // 22: jmp .halt
];

/// Enables the local APIC with a handler for vector 0x41, writes 0x12 to 0xe8002000, waits; the handler writes "I" and goes to S5.
#[rustfmt::skip]
pub const DOORBELL: &[u8] = &[
    0x48, 0x8d, 0x05, 0x43, 0x00, 0x00, 0x00,                   // 00: lea rax, [rel handler]
    0xbf, 0x10, 0x04, 0x11, 0x00,                               // 07: mov edi, 0x110000 + VEC*16
    0x66, 0x89, 0x07,                                           // 0c: mov [rdi], ax
    0x66, 0xc7, 0x47, 0x02, 0x10, 0x00,                         // 0f: mov word [rdi+2], 0x10
    0x66, 0xc7, 0x47, 0x04, 0x00, 0x8e,                         // 15: mov word [rdi+4], 0x8e00
    0x48, 0xc1, 0xe8, 0x10,                                     // 1b: shr rax, 16
    0x66, 0x89, 0x47, 0x06,                                     // 1f: mov [rdi+6], ax
    0x48, 0x8d, 0x05, 0x3d, 0x00, 0x00, 0x00,                   // 23: lea rax, [rel idtr]
    0x0f, 0x01, 0x18,                                           // 2a: lidt [rax]
    0xbb, 0x00, 0x00, 0xe0, 0xfe,                               // 2d: mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // 32: mov dword [rbx+0xf0], 0x1ff
    0xfb,                                                       // 3c: sti
    0xb9, 0x00, 0x20, 0x00, 0xe8,                               // 3d: mov ecx, 0xe8002000
    0x66, 0xc7, 0x01, 0x12, 0x00,                               // 42: mov word [rcx], 0x12
    0xf4,                                                       // 47: hlt
    0xeb, 0xfd,                                                 // 48: jmp .wait
    0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 4a: mov dword [rbx+0xb0], 0
    0x66, 0xba, 0xf8, 0x03,                                     // 54: mov dx, 0x3f8
    0xb0, 0x49,                                                 // 58: mov al, 'I'
    0xee,                                                       // 5a: out dx, al
    0x66, 0xba, 0x04, 0x06,                                     // 5b: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                                     // 5f: mov ax, 0x3400
    0x66, 0xef,                                                 // 63: out dx, ax
    0x48, 0xcf,                                                 // 65: iretq
    0xff, 0x0f,                                                 // 67: dw 0xfff
    0x00, 0x00, 0x11, 0x00, 0x00, 0x00, 0x00, 0x00,             // 69: dq 0x110000
];

/// Masks the PICs, routes the SCI (I/O APIC pin 9, level) to vector 0x42, enables the power button, writes "R", waits; the handler writes the upper byte of PM1_STS, acknowledges and goes to S5.
#[rustfmt::skip]
pub const POWER_BUTTON: &[u8] = &[
    0x48, 0x8d, 0x05, 0x6f, 0x00, 0x00, 0x00,                   // 00: lea rax, [rel handler]
    0xbf, 0x20, 0x04, 0x11, 0x00,                               // 07: mov edi, 0x110000 + VEC*16
    0x66, 0x89, 0x07,                                           // 0c: mov [rdi], ax
    0x66, 0xc7, 0x47, 0x02, 0x10, 0x00,                         // 0f: mov word [rdi+2], 0x10
    0x66, 0xc7, 0x47, 0x04, 0x00, 0x8e,                         // 15: mov word [rdi+4], 0x8e00
    0x48, 0xc1, 0xe8, 0x10,                                     // 1b: shr rax, 16
    0x66, 0x89, 0x47, 0x06,                                     // 1f: mov [rdi+6], ax
    0x48, 0x8d, 0x05, 0x71, 0x00, 0x00, 0x00,                   // 23: lea rax, [rel idtr]
    0x0f, 0x01, 0x18,                                           // 2a: lidt [rax]
    0xbb, 0x00, 0x00, 0xe0, 0xfe,                               // 2d: mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // 32: mov dword [rbx+0xf0], 0x1ff
    0xb0, 0xff,                                                 // 3c: mov al, 0xff
    0xe6, 0x21,                                                 // 3e: out 0x21, al
    0xe6, 0xa1,                                                 // 40: out 0xa1, al
    0xbe, 0x00, 0x00, 0xc0, 0xfe,                               // 42: mov esi, 0xfec00000
    0xc7, 0x06, 0x23, 0x00, 0x00, 0x00,                         // 47: mov dword [rsi], 0x23
    0xc7, 0x46, 0x10, 0x00, 0x00, 0x00, 0x00,                   // 4d: mov dword [rsi+0x10], 0
    0xc7, 0x06, 0x22, 0x00, 0x00, 0x00,                         // 54: mov dword [rsi], 0x22
    0xc7, 0x46, 0x10, 0x42, 0x80, 0x00, 0x00,                   // 5a: mov dword [rsi+0x10], 0x8042
    0x66, 0xba, 0x02, 0x06,                                     // 61: mov dx, 0x602
    0x66, 0xb8, 0x00, 0x01,                                     // 65: mov ax, 0x100
    0x66, 0xef,                                                 // 69: out dx, ax
    0xfb,                                                       // 6b: sti
    0x66, 0xba, 0xf8, 0x03,                                     // 6c: mov dx, 0x3f8
    0xb0, 0x52,                                                 // 70: mov al, 'R'
    0xee,                                                       // 72: out dx, al
    0xf4,                                                       // 73: hlt
    0xeb, 0xfd,                                                 // 74: jmp .wait
    0x66, 0xba, 0x00, 0x06,                                     // 76: mov dx, 0x600
    0x66, 0xed,                                                 // 7a: in ax, dx
    0x66, 0xef,                                                 // 7c: out dx, ax
    0x88, 0xe0,                                                 // 7e: mov al, ah
    0x66, 0xba, 0xf8, 0x03,                                     // 80: mov dx, 0x3f8
    0xee,                                                       // 84: out dx, al
    0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 85: mov dword [rbx+0xb0], 0
    0x66, 0xba, 0x04, 0x06,                                     // 8f: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                                     // 93: mov ax, 0x3400
    0x66, 0xef,                                                 // 97: out dx, ax
    0x48, 0xcf,                                                 // 99: iretq
    0xff, 0x0f,                                                 // 9b: dw 0xfff
    0x00, 0x00, 0x11, 0x00, 0x00, 0x00, 0x00, 0x00,             // 9d: dq 0x110000
];

/// Reads the PM timer until it has changed, then goes to S5.
#[rustfmt::skip]
pub const PM_TIMER: &[u8] = &[
    0x66, 0xba, 0x08, 0x06, // 00: mov dx, 0x608
    0xed,                   // 04: in eax, dx
    0x89, 0xc3,             // 05: mov ebx, eax
    0xed,                   // 07: in eax, dx
    0x39, 0xd8,             // 08: cmp eax, ebx
    0x74, 0xfb,             // 0a: je .again
    0x66, 0xba, 0x04, 0x06, // 0c: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34, // 10: mov ax, 0x3400
    0x66, 0xef,             // 14: out dx, ax
    0xf4,                   // 16: hlt
    0xeb, 0xfd,             // 17: jmp .halt
];

/// Writes CMOS registers 0x32, 9, 8, 7, 4, 2, 0 to the serial port, then goes to S5.
#[rustfmt::skip]
pub const CLOCK: &[u8] = &[
    0x48, 0x8d, 0x35, 0x21, 0x00, 0x00, 0x00,       // 00: lea rsi, [rel registers]
    0x8a, 0x06,                                     // 07: mov al, [rsi]
    0x3c, 0xff,                                     // 09: cmp al, 0xff
    0x74, 0x0e,                                     // 0b: je .done
    0xe6, 0x70,                                     // 0d: out 0x70, al
    0xe4, 0x71,                                     // 0f: in al, 0x71
    0x66, 0xba, 0xf8, 0x03,                         // 11: mov dx, 0x3f8
    0xee,                                           // 15: out dx, al
    0x48, 0xff, 0xc6,                               // 16: inc rsi
    0xeb, 0xec,                                     // 19: jmp .next
    0x66, 0xba, 0x04, 0x06,                         // 1b: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                         // 1f: mov ax, 0x3400
    0x66, 0xef,                                     // 23: out dx, ax
    0xf4,                                           // 25: hlt
    0xeb, 0xfd,                                     // 26: jmp .halt
    0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00, 0xff, // 28: db 0x32, 9, 8, 7, 4, 2, 0, 0xff
];

/// Writes 6 to port 0xcf9.
#[rustfmt::skip]
pub const RESET_CONTROL: &[u8] = &[
    0x66, 0xba, 0xf9, 0x0c, // 00: mov dx, 0xcf9
    0xb0, 0x06,             // 04: mov al, 6
    0xee,                   // 06: out dx, al
    0xf4,                   // 07: hlt
    0xeb, 0xfd,             // 08: jmp .halt
];

/// Writes 0xfe to port 0x64.
#[rustfmt::skip]
pub const RESET_KEYBOARD: &[u8] = &[
    0xb0, 0xfe, // 00: mov al, 0xfe
    0xe6, 0x64, // 02: out 0x64, al
    0xf4,       // 04: hlt
    0xeb, 0xfd, // 05: jmp .halt
];

/// Takes an exception without an interrupt table.
#[rustfmt::skip]
pub const TRIPLE_FAULT: &[u8] = &[
    0x0f, 0x0b, // 00: ud2
];

/// Writes "S", then spins with interrupts off.
#[rustfmt::skip]
pub const SPIN: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // 00: mov dx, 0x3f8
    0xb0, 0x53,             // 04: mov al, 'S'
    0xee,                   // 06: out dx, al
    0xeb, 0xfe,             // 07: jmp .spin
];

/// Reads a byte from the serial port, writes it back, then goes to S5.
#[rustfmt::skip]
pub const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, // 00: mov dx, 0x3fd
    0xec,                   // 04: in al, dx
    0xa8, 0x01,             // 05: test al, 1
    0x74, 0xf7,             // 07: jz .wait
    0x66, 0xba, 0xf8, 0x03, // 09: mov dx, 0x3f8
    0xec,                   // 0d: in al, dx
    0xee,                   // 0e: out dx, al
    0x66, 0xba, 0x04, 0x06, // 0f: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34, // 13: mov ax, 0x3400
    0x66, 0xef,             // 17: out dx, ax
    0xf4,                   // 19: hlt
    0xeb, 0xfd,             // 1a: jmp .halt
];

/// Sends INIT and SIPI (vector 0x10) to APIC 1, waits for the byte at 0x10100, writes "B", goes to S5.
#[rustfmt::skip]
pub const START_SECOND: &[u8] = &[
    0xbb, 0x00, 0x00, 0xe0, 0xfe,                               // 00: mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // 05: mov dword [rbx+0xf0], 0x1ff
    0xc7, 0x83, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, // 0f: mov dword [rbx+0x310], 0x01000000
    0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x00, 0x00, // 19: mov dword [rbx+0x300], 0x4500
    0xc7, 0x83, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, // 23: mov dword [rbx+0x310], 0x01000000
    0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x10, 0x46, 0x00, 0x00, // 2d: mov dword [rbx+0x300], 0x4610
    0xbe, 0x00, 0x01, 0x01, 0x00,                               // 37: mov esi, 0x10100
    0x8a, 0x06,                                                 // 3c: mov al, [rsi]
    0x84, 0xc0,                                                 // 3e: test al, al
    0x74, 0xfa,                                                 // 40: jz .wait
    0x66, 0xba, 0xf8, 0x03,                                     // 42: mov dx, 0x3f8
    0xb0, 0x42,                                                 // 46: mov al, 'B'
    0xee,                                                       // 48: out dx, al
    0x66, 0xba, 0x04, 0x06,                                     // 49: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                                     // 4d: mov ax, 0x3400
    0x66, 0xef,                                                 // 51: out dx, ax
    0xf4,                                                       // 53: hlt
    0xeb, 0xfd,                                                 // 54: jmp .halt
];

/// The second processor, in real mode at 0x10000: writes "A", then 1 to 0x10100, halts.
#[rustfmt::skip]
pub const SECOND: &[u8] = &[
    0x8c, 0xc8,                   // 00: mov ax, cs
    0x8e, 0xd8,                   // 02: mov ds, ax
    0xba, 0xf8, 0x03,             // 04: mov dx, 0x3f8
    0xb0, 0x41,                   // 07: mov al, 'A'
    0xee,                         // 09: out dx, al
    0xc6, 0x06, 0x00, 0x01, 0x01, // 0a: mov byte [0x100], 1
    0xfa,                         // 0f: cli
    0xf4,                         // 10: hlt
    0xeb, 0xfc,                   // 11: jmp .halt
];
