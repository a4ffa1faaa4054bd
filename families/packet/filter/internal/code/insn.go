package code

// insn is an instruction of classic BPF (linux/filter.h), with jumps that reach
// further than its 255: jt and jf count the instructions that are left out.
type insn struct {
	op     uint16
	jt, jf uint16
	k      uint32
}

// The instructions, by their numbers of classic BPF.
const (
	opImm         = 0x00 // A = k
	opLoadWord    = 0x20 // A = 4 bytes at k
	opLoadHalf    = 0x28
	opLoadByte    = 0x30
	opLoadWordX   = 0x40 // A = 4 bytes at X + k
	opLoadHalfX   = 0x48
	opLoadByteX   = 0x50
	opLoadMem     = 0x60 // A = M[k]
	opLoadLen     = 0x80 // A = the length on the wire
	opImmX        = 0x01 // X = k
	opLoadXMem    = 0x61 // X = M[k]
	opLoadXHeader = 0xb1 // X = 4 * (the byte at k & 15)
	opStore       = 0x02 // M[k] = A
	opJump        = 0x05 // on at k further, k of two's complement
	opReturn      = 0x06
	opTax         = 0x07 // X = A
	opTxa         = 0x87 // A = X

	// Each of these has a form with X for k, at byX more.
	opAdd           = 0x04
	opSub           = 0x14
	opMul           = 0x24
	opDiv           = 0x34
	opOr            = 0x44
	opAnd           = 0x54
	opShiftLeft     = 0x64
	opShiftRight    = 0x74
	opMod           = 0x94
	opXor           = 0xa4
	opJumpEqual     = 0x15
	opJumpGreater   = 0x25
	opJumpAtLeast   = 0x35
	opJumpAnyBitSet = 0x45

	byX = 0x08
)

// Instructions that classic BPF has as loads from special offsets, or does not have.
const (
	opPacketType = 0x101 // A = PACKET_ of linux/if_packet.h, or packetUnknown
	opInterface  = 0x102 // A = Metadata.Interface
	opDirection  = 0x100 // A = Metadata.Direction
	opOwner      = 0x105 // jump by the test owners[k]
)

// What a load from such an offset gives: SKF_AD_OFF and the SKF_AD_ numbers of
// linux/filter.h.
const (
	extType           = 0xfffff000 + 4  // PACKET_ of linux/if_packet.h
	extInterface      = 0xfffff000 + 8  // the index
	extHardware       = 0xfffff000 + 28 // ARPHRD_ of linux/if_arp.h
	extVLANTag        = 0xfffff000 + 44 // the tag's 16 bits of priority and number
	extVLANTagPresent = 0xfffff000 + 48 // whether a tag is in the metadata
	extVLANTPID       = 0xfffff000 + 60 // the tag's type
)

// special is where the offsets begin that have a meaning of their own to the kernel:
// SKF_LL_OFF. No packet is as long.
const special = 0xffe00000

// accept is what an accepting program returns: how many bytes are to be kept. It is
// the number that tcpdump has, its greatest snapshot length.
const accept = 262144

// loadOf is what loads a number of bytes.
var loadOf = [...]uint16{1: opLoadByte, 2: opLoadHalf, 4: opLoadWord}

var aluOf = [...]uint16{
	Add: opAdd, Sub: opSub, Mul: opMul, Div: opDiv, Mod: opMod, And: opAnd, Or: opOr, Xor: opXor,
	ShiftLeft: opShiftLeft, ShiftRight: opShiftRight,
}

var jumpOf = [...]uint16{Equal: opJumpEqual, Greater: opJumpGreater, GreaterEqual: opJumpAtLeast, Set: opJumpAnyBitSet}

// conditional tells whether i leads on by jt and jf.
func (i insn) conditional() bool {
	switch i.op &^ byX {
	case opJumpEqual, opJumpGreater, opJumpAtLeast, opJumpAnyBitSet, opOwner:
		return true
	}
	return false
}

// ours tells whether classic BPF has nothing like i.
func (i insn) ours() bool { return i.op == opOwner || i.op == opDirection }

// loadSize is how many bytes i loads from the data, and whether behind X; 0: none.
func (i insn) loadSize() (n uint32, indexed bool) {
	switch i.op {
	case opLoadWord:
		return 4, false
	case opLoadHalf:
		return 2, false
	case opLoadByte, opLoadXHeader:
		return 1, false
	case opLoadWordX:
		return 4, true
	case opLoadHalfX:
		return 2, true
	case opLoadByteX:
		return 1, true
	}
	return 0, false
}
