# Put in front of an x64 iPXE program that reads no script from where it was loaded (before 1.21): it stands in for the
# firmware's keyboard (EFI_SIMPLE_TEXT_INPUT_PROTOCOL, UEFI 2.10 §12.3), types one line and then puts the keyboard
# back. keystroke_stub.rs holds it assembled and appends the program's entry and the line; a test assembles this file and
# compares. Offsets: EFI_SYSTEM_TABLE ConIn 0x30, BootServices 0x60; EFI_BOOT_SERVICES CreateEvent 0x50,
# SignalEvent 0x68.
        .intel_syntax noprefix
        .globl start
start:  push rcx
        push rdx
        push rbx
        sub rsp, 0x40
        mov rbx, rdx
        mov [rip + table], rdx
        mov rax, [rdx + 0x30]
        mov [rip + console], rax
        lea rax, [rip + reset]
        mov [rip + input], rax
        lea rax, [rip + read]
        mov [rip + input + 8], rax
        mov rax, [rbx + 0x60]           # WaitForKey = CreateEvent(EVT_NOTIFY_WAIT, TPL_NOTIFY, notify, 0)
        mov ecx, 0x100
        mov edx, 16
        lea r8, [rip + notify]
        xor r9d, r9d
        lea r10, [rip + input + 16]
        mov [rsp + 0x20], r10
        call [rax + 0x50]
        test rax, rax
        jnz go
        lea rax, [rip + input]
        mov [rbx + 0x30], rax
go:     add rsp, 0x40
        pop rbx
        pop rdx
        pop rcx
        .byte 0xe9                      # jmp to the program's own entry, filled in by the writer
        .long 0
notify: sub rsp, 0x28                   # whoever asks whether a key is there: yes
        mov rax, [rip + table]
        mov rax, [rax + 0x60]
        call [rax + 0x68]
        add rsp, 0x28
        ret
read:   mov eax, [rip + at]             # EFI_INPUT_KEY: scan code 0, then the character
        lea r8, [rip + text]
        movzx ecx, byte ptr [r8 + rax]
        shl ecx, 16
        mov [rdx], ecx
        inc eax
        mov [rip + at], eax
        cmp byte ptr [r8 + rax], 0
        jne reset
        mov rax, [rip + console]
        mov rcx, [rip + table]
        mov [rcx + 0x30], rax
reset:  xor eax, eax
        ret
        .balign 8
table:  .quad 0
console: .quad 0
input:  .quad 0, 0, 0
at:     .long 0
text:
