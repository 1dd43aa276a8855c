import Dispatch
import Foundation

/// Statistics of repeated runs in milliseconds; quantiles are interpolated linearly between the sorted values.
public struct Timing: Equatable, Sendable {
  private let sorted: [Double]

  public var runs: Int { sorted.count }
  public var median: Double { quantile(0.5) }
  public var fastest: Double { sorted[0] }
  /// Third quartile minus first.
  public var spread: Double { quantile(0.75) - quantile(0.25) }

  public init(_ milliseconds: [Double]) throws {
    guard !milliseconds.isEmpty, milliseconds.allSatisfy({ $0.isFinite && $0 >= 0 }) else {
      throw ModelError("times: at least one run of 0 ms or more is needed")
    }
    sorted = milliseconds.sorted()
  }

  /// The value below which the share (0…1) of the runs lie.
  public func quantile(_ share: Double) -> Double {
    let position = share * Double(sorted.count - 1)
    let low = Int(position)
    let high = min(low + 1, sorted.count - 1)
    return sorted[low] + (position - Double(low)) * (sorted[high] - sorted[low])
  }

  /// Times `run` in `rounds` rounds after `warmUp` that do not count. `clock` gives nanoseconds.
  public static func measure(
    rounds: Int, warmUp: Int = 5, clock: () -> UInt64 = { DispatchTime.now().uptimeNanoseconds },
    _ run: () throws -> Void
  ) throws -> Timing {
    for _ in 0..<warmUp { try run() }
    var times: [Double] = []
    for _ in 0..<rounds {
      let start = clock()
      try run()
      times.append(Double(clock() - start) / 1e6)
    }
    return try Timing(times)
  }
}
