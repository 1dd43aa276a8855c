import Foundation

/// Cuts what a microphone gives, in buffers of any size, into frames of `window` samples, each `hop` after the one before.
///
/// What does not fill a frame is kept for the next call.
public struct Framing {
  public let window: Int
  public let hop: Int
  private var kept: [Float] = []

  /// `hop`: left out, frames follow each other without an overlap.
  public init(window: Int, hop: Int? = nil) throws {
    let hop = hop ?? window
    guard window >= 1, hop >= 1, hop <= window else {
      throw ModelError("frames of \(window) samples every \(hop): a window has 1 or more, a hop 1…window")
    }
    self.window = window
    self.hop = hop
  }

  /// The frames that samples of 16 bits complete, in [-1, 1).
  public mutating func push(_ samples: [Int16]) -> [[Float]] {
    push(samples.map { Float($0) / 32768 })
  }

  /// The frames that samples complete, as they are.
  public mutating func push(_ samples: [Float]) -> [[Float]] {
    kept += samples
    var frames: [[Float]] = []
    var start = 0
    while kept.count - start >= window {
      frames.append(Array(kept[start..<start + window]))
      start += hop
    }
    kept.removeFirst(start)
    return frames
  }

  /// Forgets what was kept: after a pause the next frame begins with the next sample.
  public mutating func reset() {
    kept.removeAll()
  }
}
