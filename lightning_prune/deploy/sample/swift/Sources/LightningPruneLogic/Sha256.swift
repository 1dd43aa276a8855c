import Foundation

#if canImport(CryptoKit)
import CryptoKit

/// SHA-256 of bytes that come in pieces.
public struct Sha256 {
  private var state = SHA256()

  public init() {}

  public mutating func update(_ data: Data) {
    state.update(data: data)
  }

  public func hexadecimal() -> String {
    state.finalize().map { String(format: "%02x", $0) }.joined()
  }
}
#else
/// SHA-256 of bytes that come in pieces (FIPS 180-4), where there is no CryptoKit: the logic is tested on Linux too.
public struct Sha256 {
  private static let constants: [UInt32] = fractions(of: 64) { $0.squareRoot3 }
  private var state: [UInt32] = fractions(of: 8) { $0.squareRoot2 }
  private var rest: [UInt8] = []
  private var length: UInt64 = 0

  public init() {}

  public mutating func update(_ data: Data) {
    length += UInt64(data.count)
    rest += data
    var start = 0
    while start + 64 <= rest.count {
      compress(rest[start..<start + 64])
      start += 64
    }
    rest.removeFirst(start)
  }

  public func hexadecimal() -> String {
    var copy = self
    let bits = length * 8
    var padding = Data([0x80])
    padding.append(Data(count: (119 - rest.count) % 64))
    padding.append(contentsOf: (0..<8).reversed().map { UInt8(truncatingIfNeeded: bits >> (8 * $0)) })
    copy.update(padding)
    return copy.state.map { String(format: "%08x", $0) }.joined()
  }

  private mutating func compress(_ block: ArraySlice<UInt8>) {
    let w = Sha256.schedule(Array(block))
    var v = state
    for t in 0..<64 {
      let big1: UInt32 = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25)
      let choice: UInt32 = (v[4] & v[5]) ^ (~v[4] & v[6])
      let first: UInt32 = v[7] &+ big1 &+ choice &+ Sha256.constants[t] &+ w[t]
      let big0: UInt32 = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22)
      let majority: UInt32 = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2])
      v = [first &+ big0 &+ majority, v[0], v[1], v[2], v[3] &+ first, v[4], v[5], v[6]]
    }
    for i in 0..<8 { state[i] = state[i] &+ v[i] }
  }

  private static func schedule(_ block: [UInt8]) -> [UInt32] {
    var w: [UInt32] = []
    for t in 0..<16 {
      var word: UInt32 = 0
      for byte in block[4 * t..<4 * t + 4] { word = (word << 8) | UInt32(byte) }
      w.append(word)
    }
    for t in 16..<64 {
      let small0: UInt32 = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ (w[t - 15] >> 3)
      let small1: UInt32 = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ (w[t - 2] >> 10)
      w.append(w[t - 16] &+ small0 &+ w[t - 7] &+ small1)
    }
    return w
  }
}

private func rotated(_ value: UInt32, _ count: UInt32) -> UInt32 {
  (value >> count) | (value << (32 - count))
}

/// The first 32 bits of the fractional parts of roots of the first primes.
private func fractions(of count: Int, _ root: (Double) -> Double) -> [UInt32] {
  let primes = (2...311).filter { n in !(2..<n).contains { n % $0 == 0 } }
  return primes.prefix(count).map { prime in
    let value = root(Double(prime))
    return UInt32((value - value.rounded(.down)) * 4_294_967_296)
  }
}

private extension Double {
  var squareRoot2: Double { squareRoot() }
  var squareRoot3: Double { cbrt(self) }
}
#endif
