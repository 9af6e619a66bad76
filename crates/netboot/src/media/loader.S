# goldwire's loader for BIOS: a medium's first sector and its El Torito boot image. loader.rs holds it assembled; a
# test assembles this file and compares.
#
# It carries out a list of pieces {LBA u32, address u32, count of 32 KiB chunks u16}, ended by an LBA of 0: each chunk
# is read to 0x20000 (INT 13h, AH=42h, which El Torito and USB share; only the sector's size differs) and moved to its
# address, which may be above 1 MiB (INT 15h, AH=87h). Then iPXE's Linux-style setup at 0x10000 is entered
# (Linux boot protocol, "Running the kernel"). The writer fills in `step` and `pieces`.
#
# A piece with address 0 is the script: it goes to the end of the memory below 4 GiB (INT 15h, AX=E820h), where an
# initial RAM disk belongs. iPXE moves to just below it; lower down it would be in the way of the kernel that it loads.
# Small machines get it at 14 MiB all the same.
        .code16
        .set map, 0x600                 # free memory above the BIOS's own data: one entry of the memory map
        .globl start
start:  cli
        xorw %ax, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movw $0x7c00, %sp
        sti
        cld
        ljmp $0, $main                  # some BIOSes enter at 07c0:0000
main:   movb %dl, drive
        xorl %ebx, %ebx
memory: movl $0xe820, %eax
        movl $0x534d4150, %edx          # "SMAP"
        movl $20, %ecx
        movw $map, %di
        int $0x15
        jc known
        movl map, %eax
        addl map + 8, %eax              # its end
        jc skip
        movl map + 4, %edx              # 0 if base and length are below 4 GiB
        orl map + 12, %edx
        jnz skip
        cmpb $1, map + 16               # usable
        jne skip
        cmpl script, %eax
        jbe skip
        movl %eax, script
skip:   testl %ebx, %ebx
        jnz memory
known:  subl $0x80000, script           # room for the largest script, and to spare
        andw $0xf000, script
        cmpl $0x6000000, script         # with 16 and 64 MiB, iPXE of 2019 was seen to move over it
        jae high
        movl $0xe00000, script
high:
        movw $pieces, %bx
piece:  movl (%bx), %eax
        testl %eax, %eax
        jz run
        movl %eax, dap_lba
        movl 4(%bx), %eax
        testl %eax, %eax
        jnz place
        movl script, %eax
place:  movl %eax, target
        movw 8(%bx), %cx
chunk:  pushw %bx
        pushw %cx
        movw step, %ax                  # the BIOS may have changed the count
        movw %ax, dap_count
        movw $dap, %si
        movb drive, %dl
        movb $0x42, %ah
        int $0x13
        jc fail
        movl target, %eax
        movw %ax, gdt_base
        shrl $16, %eax
        movb %al, gdt_base + 2
        movb %ah, gdt_base + 5
        pushw %ds
        popw %es
        movw $gdt, %si
        movw $0x4000, %cx               # words
        movb $0x87, %ah
        int $0x15
        jc fail
        addl $0x8000, target
        movzwl step, %eax
        addl %eax, dap_lba
        popw %cx
        popw %bx
        loop chunk
        addw $10, %bx
        jmp piece
run:    movl script, %edx
        movw $0x1000, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %fs
        movw %ax, %gs
        movl %edx, 0x218                # ramdisk_image
        ljmp $0x1020, $0
fail:   movw $text, %si
print:  lodsb
        testb %al, %al
        jz halt
        movw $7, %bx
        movb $0x0e, %ah
        int $0x10
        jmp print
halt:   hlt
        jmp halt
text:   .asciz "goldwire: cannot read the medium\r\n"
drive:  .byte 0
target: .long 0
script: .long 0
dap:    .byte 16, 0
dap_count: .word 0
        .word 0, 0x2000                 # 2000:0000
dap_lba: .quad 0
gdt:    .fill 16, 1, 0
        .byte 0xff, 0xff, 0, 0, 2, 0x93, 0, 0
        .byte 0xff, 0xff
gdt_base: .byte 0, 0, 0, 0x93, 0, 0
        .fill 16, 1, 0
step:   .word 0                         # sectors in 32 KiB
pieces:
