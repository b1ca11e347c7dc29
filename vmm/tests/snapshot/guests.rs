//! Guests whose result tells whether a pause has harmed them, as bytes with their listing (NASM syntax).
//!
//! All but [`PAIR_SECOND`] are 64-bit code at 0x100000. Results are written to COM1 as hexadecimal digits 'A' to 'P'. The machine goes
//! off (S5) when 0x3400 is written to port 0x604.

/// Computes 60000 rounds of xorshift64 and sums them up, while the local APIC's periodic timer fires every 2 ms: its handler adds
/// a PCI register and writes "." to the serial port, whose transmitter interrupt then writes ",". After 200 ticks it adds CR2,
/// DR0, an SSE register and a model-specific register that it has set before, and writes the sum.
#[rustfmt::skip]
pub const COMPUTE: &[u8] = &[
    0x48, 0x8d, 0x05, 0x76, 0x01, 0x00, 0x00,                          // 00: lea rax, [rel timer]
    0xbf, 0x10, 0x04, 0x11, 0x00,                                      // 07: mov edi, 0x110000 + 0x41*16
    0xe8, 0x54, 0x01, 0x00, 0x00,                                      // 0c: call gate
    0x48, 0x8d, 0x05, 0x98, 0x01, 0x00, 0x00,                          // 11: lea rax, [rel serial]
    0xbf, 0x40, 0x04, 0x11, 0x00,                                      // 18: mov edi, 0x110000 + 0x44*16
    0xe8, 0x43, 0x01, 0x00, 0x00,                                      // 1d: call gate
    0x48, 0x8d, 0x05, 0xab, 0x01, 0x00, 0x00,                          // 22: lea rax, [rel idtr]
    0x0f, 0x01, 0x18,                                                  // 29: lidt [rax]
    0xbb, 0x00, 0x00, 0xe0, 0xfe,                                      // 2c: mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00,        // 31: mov dword [rbx+0xf0], 0x1ff
    0xb0, 0xff,                                                        // 3b: mov al, 0xff
    0xe6, 0x21,                                                        // 3d: out 0x21, al
    0xe6, 0xa1,                                                        // 3f: out 0xa1, al
    0xbf, 0x00, 0x00, 0xc0, 0xfe,                                      // 41: mov edi, 0xfec00000
    0xc7, 0x07, 0x19, 0x00, 0x00, 0x00,                                // 46: mov dword [rdi], 0x19
    0xc7, 0x47, 0x10, 0x00, 0x00, 0x00, 0x00,                          // 4c: mov dword [rdi+0x10], 0
    0xc7, 0x07, 0x18, 0x00, 0x00, 0x00,                                // 53: mov dword [rdi], 0x18
    0xc7, 0x47, 0x10, 0x44, 0x00, 0x00, 0x00,                          // 59: mov dword [rdi+0x10], 0x44
    0x0f, 0x20, 0xe0,                                                  // 60: mov rax, cr4
    0x0d, 0x00, 0x02, 0x00, 0x00,                                      // 63: or eax, 0x200
    0x0f, 0x22, 0xe0,                                                  // 68: mov cr4, rax
    0x48, 0x8d, 0x3d, 0x6e, 0x01, 0x00, 0x00,                          // 6b: lea rdi, [rel wide]
    0xf3, 0x0f, 0x6f, 0x3f,                                            // 72: movdqu xmm7, [rdi]
    0x48, 0xb8, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0x00,        // 76: mov rax, 0x0000112233445566
    0x0f, 0x22, 0xd0,                                                  // 80: mov cr2, rax
    0x0f, 0x23, 0xc0,                                                  // 83: mov dr0, rax
    0x48, 0x89, 0xc2,                                                  // 86: mov rdx, rax
    0x48, 0xc1, 0xea, 0x20,                                            // 89: shr rdx, 32
    0xb9, 0x02, 0x01, 0x00, 0xc0,                                      // 8d: mov ecx, 0xc0000102
    0x0f, 0x30,                                                        // 92: wrmsr
    0x45, 0x31, 0xc9,                                                  // 94: xor r9d, r9d
    0x45, 0x31, 0xd2,                                                  // 97: xor r10d, r10d
    0x45, 0x31, 0xdb,                                                  // 9a: xor r11d, r11d
    0x31, 0xf6,                                                        // 9d: xor esi, esi
    0x66, 0xba, 0xf9, 0x03,                                            // 9f: mov dx, 0x3f9
    0xb0, 0x02,                                                        // a3: mov al, 2
    0xee,                                                              // a5: out dx, al
    0xc7, 0x83, 0xe0, 0x03, 0x00, 0x00, 0x0b, 0x00, 0x00, 0x00,        // a6: mov dword [rbx+0x3e0], 0xb
    0xc7, 0x83, 0x20, 0x03, 0x00, 0x00, 0x41, 0x00, 0x02, 0x00,        // b0: mov dword [rbx+0x320], 0x20041
    0xc7, 0x83, 0x80, 0x03, 0x00, 0x00, 0x80, 0x84, 0x1e, 0x00,        // ba: mov dword [rbx+0x380], 2000000
    0x48, 0xb8, 0x15, 0x7c, 0x4a, 0x7f, 0xb9, 0x79, 0x37, 0x9e,        // c4: mov rax, 0x9e3779b97f4a7c15
    0xb9, 0x60, 0xea, 0x00, 0x00,                                      // ce: mov ecx, 60000
    0xfb,                                                              // d3: sti
    0x48, 0x89, 0xc2,                                                  // d4: mov rdx, rax
    0x48, 0xc1, 0xe2, 0x0d,                                            // d7: shl rdx, 13
    0x48, 0x31, 0xd0,                                                  // db: xor rax, rdx
    0x48, 0x89, 0xc2,                                                  // de: mov rdx, rax
    0x48, 0xc1, 0xea, 0x07,                                            // e1: shr rdx, 7
    0x48, 0x31, 0xd0,                                                  // e5: xor rax, rdx
    0x48, 0x89, 0xc2,                                                  // e8: mov rdx, rax
    0x48, 0xc1, 0xe2, 0x11,                                            // eb: shl rdx, 17
    0x48, 0x31, 0xd0,                                                  // ef: xor rax, rdx
    0x48, 0x01, 0xc6,                                                  // f2: add rsi, rax
    0xff, 0xc9,                                                        // f5: dec ecx
    0x75, 0xdb,                                                        // f7: jnz round
    0x41, 0x81, 0xfa, 0xc8, 0x00, 0x00, 0x00,                          // f9: cmp r10d, 200
    0x72, 0xf7,                                                        // 100: jb .ticks
    0x45, 0x85, 0xdb,                                                  // 102: test r11d, r11d
    0x75, 0xfb,                                                        // 105: jnz .last
    0xfa,                                                              // 107: cli
    0x48, 0x8d, 0x3d, 0xd1, 0x00, 0x00, 0x00,                          // 108: lea rdi, [rel wide]
    0x48, 0x83, 0xc7, 0x10,                                            // 10f: add rdi, 16
    0xf3, 0x0f, 0x7f, 0x3f,                                            // 113: movdqu [rdi], xmm7
    0x48, 0x03, 0x37,                                                  // 117: add rsi, [rdi]
    0x4c, 0x01, 0xce,                                                  // 11a: add rsi, r9
    0x0f, 0x20, 0xd0,                                                  // 11d: mov rax, cr2
    0x48, 0x01, 0xc6,                                                  // 120: add rsi, rax
    0x0f, 0x21, 0xc0,                                                  // 123: mov rax, dr0
    0x48, 0xc1, 0xc0, 0x08,                                            // 126: rol rax, 8
    0x48, 0x01, 0xc6,                                                  // 12a: add rsi, rax
    0xb9, 0x02, 0x01, 0x00, 0xc0,                                      // 12d: mov ecx, 0xc0000102
    0x0f, 0x32,                                                        // 132: rdmsr
    0x48, 0x01, 0xc6,                                                  // 134: add rsi, rax
    0x48, 0xc1, 0xe2, 0x20,                                            // 137: shl rdx, 32
    0x48, 0x01, 0xd6,                                                  // 13b: add rsi, rdx
    0x66, 0xba, 0xf8, 0x03,                                            // 13e: mov dx, 0x3f8
    0xb9, 0x10, 0x00, 0x00, 0x00,                                      // 142: mov ecx, 16
    0x48, 0xc1, 0xc6, 0x04,                                            // 147: rol rsi, 4
    0x89, 0xf0,                                                        // 14b: mov eax, esi
    0x83, 0xe0, 0x0f,                                                  // 14d: and eax, 15
    0x83, 0xc0, 0x41,                                                  // 150: add eax, 'A'
    0xee,                                                              // 153: out dx, al
    0xff, 0xc9,                                                        // 154: dec ecx
    0x75, 0xef,                                                        // 156: jnz digit
    0x66, 0xba, 0x04, 0x06,                                            // 158: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                                            // 15c: mov ax, 0x3400
    0x66, 0xef,                                                        // 160: out dx, ax
    0xf4,                                                              // 162: hlt
    0xeb, 0xfd,                                                        // 163: jmp .halt
    0x66, 0x89, 0x07,                                                  // 165: mov [rdi], ax
    0x66, 0xc7, 0x47, 0x02, 0x10, 0x00,                                // 168: mov word [rdi+2], 0x10
    0x66, 0xc7, 0x47, 0x04, 0x00, 0x8e,                                // 16e: mov word [rdi+4], 0x8e00
    0x48, 0xc1, 0xe8, 0x10,                                            // 174: shr rax, 16
    0x66, 0x89, 0x47, 0x06,                                            // 178: mov [rdi+6], ax
    0xc3,                                                              // 17c: ret
    0x50,                                                              // 17d: push rax
    0x52,                                                              // 17e: push rdx
    0x41, 0x81, 0xfa, 0xc8, 0x00, 0x00, 0x00,                          // 17f: cmp r10d, 200
    0x73, 0x1a,                                                        // 186: jae .done
    0x41, 0xff, 0xc2,                                                  // 188: inc r10d
    0xba, 0x00, 0x00, 0x00, 0xe0,                                      // 18b: mov edx, 0xe0000000
    0x8b, 0x02,                                                        // 190: mov eax, [rdx]
    0x49, 0x01, 0xc1,                                                  // 192: add r9, rax
    0x41, 0xbb, 0x01, 0x00, 0x00, 0x00,                                // 195: mov r11d, 1
    0x66, 0xba, 0xf8, 0x03,                                            // 19b: mov dx, 0x3f8
    0xb0, 0x2e,                                                        // 19f: mov al, '.'
    0xee,                                                              // 1a1: out dx, al
    0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,        // 1a2: mov dword [rbx+0xb0], 0
    0x5a,                                                              // 1ac: pop rdx
    0x58,                                                              // 1ad: pop rax
    0x48, 0xcf,                                                        // 1ae: iretq
    0x50,                                                              // 1b0: push rax
    0x52,                                                              // 1b1: push rdx
    0x66, 0xba, 0xfa, 0x03,                                            // 1b2: mov dx, 0x3fa
    0xec,                                                              // 1b6: in al, dx
    0x45, 0x85, 0xdb,                                                  // 1b7: test r11d, r11d
    0x74, 0x0a,                                                        // 1ba: jz .done
    0x45, 0x31, 0xdb,                                                  // 1bc: xor r11d, r11d
    0x66, 0xba, 0xf8, 0x03,                                            // 1bf: mov dx, 0x3f8
    0xb0, 0x2c,                                                        // 1c3: mov al, ','
    0xee,                                                              // 1c5: out dx, al
    0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,        // 1c6: mov dword [rbx+0xb0], 0
    0x5a,                                                              // 1d0: pop rdx
    0x58,                                                              // 1d1: pop rax
    0x48, 0xcf,                                                        // 1d2: iretq
    0xff, 0x0f,                                                        // 1d4: dw 0xfff
    0x00, 0x00, 0x11, 0x00, 0x00, 0x00, 0x00, 0x00,                    // 1d6: dq 0x110000
    0x00, 0x00,                                                        // 1de: 2h>              align 16, db 0
    0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, // 1e0: dq 0x0123456789abcdef, 0xfedcba9876543210
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 1f0: dq 0, 0
];

/// Starts processor 1, then takes turns with it, 4000 times each: looks whether the time stamp counter has gone back since the
/// other's turn, and steps a number on. Writes how often it has gone back and the number.
#[rustfmt::skip]
pub const PAIR_FIRST: &[u8] = &[
    0xbb, 0x00, 0x00, 0xe0, 0xfe,                               // 00: mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // 05: mov dword [rbx+0xf0], 0x1ff
    0xc7, 0x83, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, // 0f: mov dword [rbx+0x310], 0x01000000
    0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x00, 0x45, 0x00, 0x00, // 19: mov dword [rbx+0x300], 0x4500
    0xc7, 0x83, 0x10, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, // 23: mov dword [rbx+0x310], 0x01000000
    0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x10, 0x46, 0x00, 0x00, // 2d: mov dword [rbx+0x300], 0x4610
    0xbe, 0x00, 0x01, 0x01, 0x00,                               // 37: mov esi, 0x10100
    0xbf, 0xa0, 0x0f, 0x00, 0x00,                               // 3c: mov edi, 4000
    0x80, 0x3e, 0x00,                                           // 41: cmp byte [rsi], 0
    0x75, 0xfb,                                                 // 44: jne round
    0x0f, 0x31,                                                 // 46: rdtsc
    0x2b, 0x46, 0x08,                                           // 48: sub eax, [rsi+8]
    0x1b, 0x56, 0x0c,                                           // 4b: sbb edx, [rsi+12]
    0x73, 0x03,                                                 // 4e: jnc .forward
    0xff, 0x46, 0x10,                                           // 50: inc dword [rsi+16]
    0x8b, 0x46, 0x04,                                           // 53: mov eax, [rsi+4]
    0x69, 0xc0, 0xcd, 0x0d, 0x01, 0x00,                         // 56: imul eax, eax, 69069
    0xff, 0xc0,                                                 // 5c: inc eax
    0x89, 0x46, 0x04,                                           // 5e: mov [rsi+4], eax
    0x0f, 0x31,                                                 // 61: rdtsc
    0x89, 0x46, 0x08,                                           // 63: mov [rsi+8], eax
    0x89, 0x56, 0x0c,                                           // 66: mov [rsi+12], edx
    0xc6, 0x06, 0x01,                                           // 69: mov byte [rsi], 1
    0xff, 0xcf,                                                 // 6c: dec edi
    0x75, 0xd1,                                                 // 6e: jnz round
    0x80, 0x3e, 0x00,                                           // 70: cmp byte [rsi], 0
    0x75, 0xfb,                                                 // 73: jne .last
    0x66, 0xba, 0xf8, 0x03,                                     // 75: mov dx, 0x3f8
    0x8b, 0x46, 0x10,                                           // 79: mov eax, [rsi+16]
    0x83, 0xf8, 0x09,                                           // 7c: cmp eax, 9
    0x76, 0x05,                                                 // 7f: jbe .few
    0xb8, 0x09, 0x00, 0x00, 0x00,                               // 81: mov eax, 9
    0x83, 0xc0, 0x30,                                           // 86: add eax, '0'
    0xee,                                                       // 89: out dx, al
    0x8b, 0x76, 0x04,                                           // 8a: mov esi, [rsi+4]
    0xb9, 0x08, 0x00, 0x00, 0x00,                               // 8d: mov ecx, 8
    0xc1, 0xc6, 0x04,                                           // 92: rol esi, 4
    0x89, 0xf0,                                                 // 95: mov eax, esi
    0x83, 0xe0, 0x0f,                                           // 97: and eax, 15
    0x83, 0xc0, 0x41,                                           // 9a: add eax, 'A'
    0xee,                                                       // 9d: out dx, al
    0xff, 0xc9,                                                 // 9e: dec ecx
    0x75, 0xf0,                                                 // a0: jnz digit
    0x66, 0xba, 0x04, 0x06,                                     // a2: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                                     // a6: mov ax, 0x3400
    0x66, 0xef,                                                 // aa: out dx, ax
    0xf4,                                                       // ac: hlt
    0xeb, 0xfd,                                                 // ad: jmp .halt
];

/// The other processor's part of [`PAIR_FIRST`], in real mode at 0x10000.
#[rustfmt::skip]
pub const PAIR_SECOND: &[u8] = &[
    0x8c, 0xc8,                               // 00: mov ax, cs
    0x8e, 0xd8,                               // 02: mov ds, ax
    0x66, 0xb9, 0xa0, 0x0f, 0x00, 0x00,       // 04: mov ecx, 4000
    0x80, 0x3e, 0x00, 0x01, 0x01,             // 0a: cmp byte [0x100], 1
    0x75, 0xf9,                               // 0f: jne round
    0x0f, 0x31,                               // 11: rdtsc
    0x66, 0x2b, 0x06, 0x08, 0x01,             // 13: sub eax, [0x108]
    0x66, 0x1b, 0x16, 0x0c, 0x01,             // 18: sbb edx, [0x10c]
    0x73, 0x05,                               // 1d: jnc .forward
    0x66, 0xff, 0x06, 0x10, 0x01,             // 1f: inc dword [0x110]
    0x66, 0xa1, 0x04, 0x01,                   // 24: mov eax, [0x104]
    0x66, 0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00, // 28: imul eax, eax, 1664525
    0x66, 0x05, 0x5f, 0xf3, 0x6e, 0x3c,       // 2f: add eax, 1013904223
    0x66, 0xa3, 0x04, 0x01,                   // 35: mov [0x104], eax
    0x0f, 0x31,                               // 39: rdtsc
    0x66, 0xa3, 0x08, 0x01,                   // 3b: mov [0x108], eax
    0x66, 0x89, 0x16, 0x0c, 0x01,             // 3f: mov [0x10c], edx
    0xc6, 0x06, 0x00, 0x01, 0x00,             // 44: mov byte [0x100], 0
    0x66, 0x49,                               // 49: dec ecx
    0x75, 0xbd,                               // 4b: jnz round
    0xfa,                                     // 4d: cli
    0xf4,                                     // 4e: hlt
    0xeb, 0xfd,                               // 4f: jmp .halt
];

/// Brings up the virtio block device in PCI slot 1 and reads sectors 0 to 399 one by one, halting until the interrupt comes. Sums
/// up the first and the last 8 bytes of each, and writes "." for each and the sum.
#[rustfmt::skip]
pub const DISK: &[u8] = &[
    0x48, 0x8d, 0x05, 0x83, 0x01, 0x00, 0x00,                   // 00: lea rax, [rel done]
    0xbf, 0x60, 0x04, 0x11, 0x00,                               // 07: mov edi, 0x110000 + 0x46*16
    0x66, 0x89, 0x07,                                           // 0c: mov [rdi], ax
    0x66, 0xc7, 0x47, 0x02, 0x10, 0x00,                         // 0f: mov word [rdi+2], 0x10
    0x66, 0xc7, 0x47, 0x04, 0x00, 0x8e,                         // 15: mov word [rdi+4], 0x8e00
    0x48, 0xc1, 0xe8, 0x10,                                     // 1b: shr rax, 16
    0x66, 0x89, 0x47, 0x06,                                     // 1f: mov [rdi+6], ax
    0x48, 0x8d, 0x05, 0x72, 0x01, 0x00, 0x00,                   // 23: lea rax, [rel idtr]
    0x0f, 0x01, 0x18,                                           // 2a: lidt [rax]
    0xbb, 0x00, 0x00, 0xe0, 0xfe,                               // 2d: mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // 32: mov dword [rbx+0xf0], 0x1ff
    0xb0, 0xff,                                                 // 3c: mov al, 0xff
    0xe6, 0x21,                                                 // 3e: out 0x21, al
    0xe6, 0xa1,                                                 // 40: out 0xa1, al
    0xbf, 0x42, 0x80, 0x00, 0xe0,                               // 42: mov edi, 0xe0008042
    0x66, 0xc7, 0x07, 0x00, 0x80,                               // 47: mov word [rdi], 0x8000
    0xbf, 0x00, 0x00, 0x00, 0xc0,                               // 4c: mov edi, 0xc0000000
    0xc7, 0x87, 0x10, 0x40, 0x00, 0x00, 0x00, 0x00, 0xe0, 0xfe, // 51: mov dword [rdi+0x4010], 0xfee00000
    0xc7, 0x87, 0x14, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 5b: mov dword [rdi+0x4014], 0
    0xc7, 0x87, 0x18, 0x40, 0x00, 0x00, 0x46, 0x00, 0x00, 0x00, // 65: mov dword [rdi+0x4018], 0x46
    0xc7, 0x87, 0x1c, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 6f: mov dword [rdi+0x401c], 0
    0xc6, 0x47, 0x14, 0x01,                                     // 79: mov byte [rdi+0x14], 1
    0xc6, 0x47, 0x14, 0x03,                                     // 7d: mov byte [rdi+0x14], 3
    0xc7, 0x47, 0x08, 0x01, 0x00, 0x00, 0x00,                   // 81: mov dword [rdi+0x08], 1
    0xc7, 0x47, 0x0c, 0x01, 0x00, 0x00, 0x00,                   // 88: mov dword [rdi+0x0c], 1
    0xc6, 0x47, 0x14, 0x0b,                                     // 8f: mov byte [rdi+0x14], 0xb
    0x66, 0xc7, 0x47, 0x16, 0x00, 0x00,                         // 93: mov word [rdi+0x16], 0
    0x66, 0xc7, 0x47, 0x18, 0x10, 0x00,                         // 99: mov word [rdi+0x18], 16
    0x66, 0xc7, 0x47, 0x1a, 0x01, 0x00,                         // 9f: mov word [rdi+0x1a], 1
    0xc7, 0x47, 0x20, 0x00, 0x00, 0x12, 0x00,                   // a5: mov dword [rdi+0x20], 0x120000
    0xc7, 0x47, 0x28, 0x00, 0x10, 0x12, 0x00,                   // ac: mov dword [rdi+0x28], 0x121000
    0xc7, 0x47, 0x30, 0x00, 0x20, 0x12, 0x00,                   // b3: mov dword [rdi+0x30], 0x122000
    0x66, 0xc7, 0x47, 0x1c, 0x01, 0x00,                         // ba: mov word [rdi+0x1c], 1
    0xc6, 0x47, 0x14, 0x0f,                                     // c0: mov byte [rdi+0x14], 0xf
    0xbe, 0x00, 0x00, 0x12, 0x00,                               // c4: mov esi, 0x120000
    0xc7, 0x06, 0x00, 0x30, 0x12, 0x00,                         // c9: mov dword [rsi], 0x123000
    0xc7, 0x46, 0x08, 0x10, 0x00, 0x00, 0x00,                   // cf: mov dword [rsi+8], 16
    0xc7, 0x46, 0x0c, 0x01, 0x00, 0x01, 0x00,                   // d6: mov dword [rsi+12], 0x10001
    0xc7, 0x46, 0x10, 0x00, 0x40, 0x12, 0x00,                   // dd: mov dword [rsi+16], 0x124000
    0xc7, 0x46, 0x18, 0x00, 0x02, 0x00, 0x00,                   // e4: mov dword [rsi+24], 512
    0xc7, 0x46, 0x1c, 0x03, 0x00, 0x02, 0x00,                   // eb: mov dword [rsi+28], 0x20003
    0xc7, 0x46, 0x20, 0x00, 0x31, 0x12, 0x00,                   // f2: mov dword [rsi+32], 0x123100
    0xc7, 0x46, 0x28, 0x01, 0x00, 0x00, 0x00,                   // f9: mov dword [rsi+40], 1
    0xc7, 0x46, 0x2c, 0x02, 0x00, 0x00, 0x00,                   // 100: mov dword [rsi+44], 2
    0x31, 0xc9,                                                 // 107: xor ecx, ecx
    0x31, 0xed,                                                 // 109: xor ebp, ebp
    0xbe, 0x00, 0x30, 0x12, 0x00,                               // 10b: mov esi, 0x123000
    0x89, 0x4e, 0x08,                                           // 110: mov [rsi+8], ecx
    0xc6, 0x86, 0x00, 0x01, 0x00, 0x00, 0xff,                   // 113: mov byte [rsi+0x100], 0xff
    0xff, 0xc1,                                                 // 11a: inc ecx
    0xbe, 0x00, 0x10, 0x12, 0x00,                               // 11c: mov esi, 0x121000
    0x66, 0x89, 0x4e, 0x02,                                     // 121: mov [rsi+2], cx
    0x66, 0xc7, 0x87, 0x00, 0x30, 0x00, 0x00, 0x00, 0x00,       // 125: mov word [rdi+0x3000], 0
    0xfa,                                                       // 12e: cli
    0x39, 0x0d, 0x71, 0x00, 0x00, 0x00,                         // 12f: cmp [rel finished], ecx
    0x74, 0x04,                                                 // 135: je .finished
    0xfb,                                                       // 137: sti
    0xf4,                                                       // 138: hlt
    0xeb, 0xf3,                                                 // 139: jmp .wait
    0xfb,                                                       // 13b: sti
    0xbe, 0x00, 0x31, 0x12, 0x00,                               // 13c: mov esi, 0x123100
    0x80, 0x3e, 0x00,                                           // 141: cmp byte [rsi], 0
    0x75, 0x12,                                                 // 144: jne .failed
    0xbe, 0x00, 0x40, 0x12, 0x00,                               // 146: mov esi, 0x124000
    0x48, 0x03, 0x2e,                                           // 14b: add rbp, [rsi]
    0x48, 0xd1, 0xc5,                                           // 14e: rol rbp, 1
    0x48, 0x03, 0xae, 0xf8, 0x01, 0x00, 0x00,                   // 151: add rbp, [rsi+504]
    0x66, 0xba, 0xf8, 0x03,                                     // 158: mov dx, 0x3f8
    0xb0, 0x2e,                                                 // 15c: mov al, '.'
    0xee,                                                       // 15e: out dx, al
    0x81, 0xf9, 0x90, 0x01, 0x00, 0x00,                         // 15f: cmp ecx, 400
    0x72, 0xa4,                                                 // 165: jb request
    0xb9, 0x10, 0x00, 0x00, 0x00,                               // 167: mov ecx, 16
    0x48, 0xc1, 0xc5, 0x04,                                     // 16c: rol rbp, 4
    0x89, 0xe8,                                                 // 170: mov eax, ebp
    0x83, 0xe0, 0x0f,                                           // 172: and eax, 15
    0x83, 0xc0, 0x41,                                           // 175: add eax, 'A'
    0xee,                                                       // 178: out dx, al
    0xff, 0xc9,                                                 // 179: dec ecx
    0x75, 0xef,                                                 // 17b: jnz digit
    0x66, 0xba, 0x04, 0x06,                                     // 17d: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                                     // 181: mov ax, 0x3400
    0x66, 0xef,                                                 // 185: out dx, ax
    0xf4,                                                       // 187: hlt
    0xeb, 0xfd,                                                 // 188: jmp .halt
    0xff, 0x05, 0x16, 0x00, 0x00, 0x00,                         // 18a: inc dword [rel finished]
    0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 190: mov dword [rbx+0xb0], 0
    0x48, 0xcf,                                                 // 19a: iretq
    0xff, 0x0f,                                                 // 19c: dw 0xfff
    0x00, 0x00, 0x11, 0x00, 0x00, 0x00, 0x00, 0x00,             // 19e: dq 0x110000
    0x00, 0x00, 0x00, 0x00,                                     // 1a6: dd 0
];

/// Halts until the local APIC's timer has fired 150 times, armed anew each time by a deadline of the time stamp counter some 2 ms away.
/// Writes "." each time.
#[rustfmt::skip]
pub const DEADLINE: &[u8] = &[
    0x48, 0x8d, 0x05, 0x72, 0x00, 0x00, 0x00,                   // 00: lea rax, [rel timer]
    0xbf, 0x10, 0x04, 0x11, 0x00,                               // 07: mov edi, 0x110000 + 0x41*16
    0x66, 0x89, 0x07,                                           // 0c: mov [rdi], ax
    0x66, 0xc7, 0x47, 0x02, 0x10, 0x00,                         // 0f: mov word [rdi+2], 0x10
    0x66, 0xc7, 0x47, 0x04, 0x00, 0x8e,                         // 15: mov word [rdi+4], 0x8e00
    0x48, 0xc1, 0xe8, 0x10,                                     // 1b: shr rax, 16
    0x66, 0x89, 0x47, 0x06,                                     // 1f: mov [rdi+6], ax
    0x48, 0x8d, 0x05, 0x7c, 0x00, 0x00, 0x00,                   // 23: lea rax, [rel idtr]
    0x0f, 0x01, 0x18,                                           // 2a: lidt [rax]
    0xbb, 0x00, 0x00, 0xe0, 0xfe,                               // 2d: mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // 32: mov dword [rbx+0xf0], 0x1ff
    0xb0, 0xff,                                                 // 3c: mov al, 0xff
    0xe6, 0x21,                                                 // 3e: out 0x21, al
    0xe6, 0xa1,                                                 // 40: out 0xa1, al
    0xc7, 0x83, 0xe0, 0x03, 0x00, 0x00, 0x0b, 0x00, 0x00, 0x00, // 42: mov dword [rbx+0x3e0], 0xb
    0xc7, 0x83, 0x20, 0x03, 0x00, 0x00, 0x41, 0x00, 0x04, 0x00, // 4c: mov dword [rbx+0x320], 0x40041
    0x45, 0x31, 0xd2,                                           // 56: xor r10d, r10d
    0xe8, 0x36, 0x00, 0x00, 0x00,                               // 59: call arm
    0xfa,                                                       // 5e: cli
    0x41, 0x81, 0xfa, 0x96, 0x00, 0x00, 0x00,                   // 5f: cmp r10d, 150
    0x73, 0x04,                                                 // 66: jae .off
    0xfb,                                                       // 68: sti
    0xf4,                                                       // 69: hlt
    0xeb, 0xf2,                                                 // 6a: jmp idle
    0x66, 0xba, 0x04, 0x06,                                     // 6c: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                                     // 70: mov ax, 0x3400
    0x66, 0xef,                                                 // 74: out dx, ax
    0xf4,                                                       // 76: hlt
    0xeb, 0xfd,                                                 // 77: jmp .halt
    0x41, 0xff, 0xc2,                                           // 79: inc r10d
    0x66, 0xba, 0xf8, 0x03,                                     // 7c: mov dx, 0x3f8
    0xb0, 0x2e,                                                 // 80: mov al, '.'
    0xee,                                                       // 82: out dx, al
    0xe8, 0x0c, 0x00, 0x00, 0x00,                               // 83: call arm
    0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 88: mov dword [rbx+0xb0], 0
    0x48, 0xcf,                                                 // 92: iretq
    0x0f, 0x31,                                                 // 94: rdtsc
    0x05, 0x40, 0x4b, 0x4c, 0x00,                               // 96: add eax, 5000000
    0x83, 0xd2, 0x00,                                           // 9b: adc edx, 0
    0xb9, 0xe0, 0x06, 0x00, 0x00,                               // 9e: mov ecx, 0x6e0
    0x0f, 0x30,                                                 // a3: wrmsr
    0xc3,                                                       // a5: ret
    0xff, 0x0f,                                                 // a6: dw 0xfff
    0x00, 0x00, 0x11, 0x00, 0x00, 0x00, 0x00, 0x00,             // a8: dq 0x110000
];

/// As [`DEADLINE`], the timer armed by a count of 2 ms.
#[rustfmt::skip]
pub const ONE_SHOT: &[u8] = &[
    0x48, 0x8d, 0x05, 0x72, 0x00, 0x00, 0x00,                   // 00: lea rax, [rel timer]
    0xbf, 0x10, 0x04, 0x11, 0x00,                               // 07: mov edi, 0x110000 + 0x41*16
    0x66, 0x89, 0x07,                                           // 0c: mov [rdi], ax
    0x66, 0xc7, 0x47, 0x02, 0x10, 0x00,                         // 0f: mov word [rdi+2], 0x10
    0x66, 0xc7, 0x47, 0x04, 0x00, 0x8e,                         // 15: mov word [rdi+4], 0x8e00
    0x48, 0xc1, 0xe8, 0x10,                                     // 1b: shr rax, 16
    0x66, 0x89, 0x47, 0x06,                                     // 1f: mov [rdi+6], ax
    0x48, 0x8d, 0x05, 0x75, 0x00, 0x00, 0x00,                   // 23: lea rax, [rel idtr]
    0x0f, 0x01, 0x18,                                           // 2a: lidt [rax]
    0xbb, 0x00, 0x00, 0xe0, 0xfe,                               // 2d: mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // 32: mov dword [rbx+0xf0], 0x1ff
    0xb0, 0xff,                                                 // 3c: mov al, 0xff
    0xe6, 0x21,                                                 // 3e: out 0x21, al
    0xe6, 0xa1,                                                 // 40: out 0xa1, al
    0xc7, 0x83, 0xe0, 0x03, 0x00, 0x00, 0x0b, 0x00, 0x00, 0x00, // 42: mov dword [rbx+0x3e0], 0xb
    0xc7, 0x83, 0x20, 0x03, 0x00, 0x00, 0x41, 0x00, 0x00, 0x00, // 4c: mov dword [rbx+0x320], 0x41
    0x45, 0x31, 0xd2,                                           // 56: xor r10d, r10d
    0xe8, 0x36, 0x00, 0x00, 0x00,                               // 59: call arm
    0xfa,                                                       // 5e: cli
    0x41, 0x81, 0xfa, 0x96, 0x00, 0x00, 0x00,                   // 5f: cmp r10d, 150
    0x73, 0x04,                                                 // 66: jae .off
    0xfb,                                                       // 68: sti
    0xf4,                                                       // 69: hlt
    0xeb, 0xf2,                                                 // 6a: jmp idle
    0x66, 0xba, 0x04, 0x06,                                     // 6c: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,                                     // 70: mov ax, 0x3400
    0x66, 0xef,                                                 // 74: out dx, ax
    0xf4,                                                       // 76: hlt
    0xeb, 0xfd,                                                 // 77: jmp .halt
    0x41, 0xff, 0xc2,                                           // 79: inc r10d
    0x66, 0xba, 0xf8, 0x03,                                     // 7c: mov dx, 0x3f8
    0xb0, 0x2e,                                                 // 80: mov al, '.'
    0xee,                                                       // 82: out dx, al
    0xe8, 0x0c, 0x00, 0x00, 0x00,                               // 83: call arm
    0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 88: mov dword [rbx+0xb0], 0
    0x48, 0xcf,                                                 // 92: iretq
    0xc7, 0x83, 0x80, 0x03, 0x00, 0x00, 0x80, 0x84, 0x1e, 0x00, // 94: mov dword [rbx+0x380], 2000000
    0xc3,                                                       // 9e: ret
    0xff, 0x0f,                                                 // 9f: dw 0xfff
    0x00, 0x00, 0x11, 0x00, 0x00, 0x00, 0x00, 0x00,             // a1: dq 0x110000
];
