import Foundation

/// What a finger draws: lines of ink on paper, framed before the model sees them.
public struct Drawing: Sendable {
  public let size: Int
  private let radius: Double
  public private(set) var image: GrayImage

  public var isEmpty: Bool { image.values.allSatisfy { $0 == 0 } }

  public init(size: Int = 64, radius: Double = 2.5) {
    self.size = size
    self.radius = radius
    image = GrayImage(height: size, width: size)
  }

  public mutating func clear() {
    image = GrayImage(height: size, width: size)
  }

  /// Ink from one point to another, in [0, 1] of width and height; what lies outside is left out.
  public mutating func line(fromX: Double, fromY: Double, toX: Double, toY: Double) {
    let scale = Double(size)
    let startX: Double = fromX * scale
    let startY: Double = fromY * scale
    let alongX: Double = toX * scale - startX
    let alongY: Double = toY * scale - startY
    let square: Double = alongX * alongX + alongY * alongY
    for y in 0..<size {
      for x in 0..<size {
        let offX: Double = Double(x) + 0.5 - startX
        let offY: Double = Double(y) + 0.5 - startY
        let along: Double = offX * alongX + offY * alongY
        let share: Double = square == 0 ? 0 : min(max(along / square, 0), 1)
        let gap: Double = hypot(offX - share * alongX, offY - share * alongY)
        let ink = Float(min(max(radius + 0.5 - gap, 0), 1))
        if ink > image.values[y * size + x] { image.values[y * size + x] = ink }
      }
    }
  }

  /// The ink alone, in the middle of the smallest square that holds it; empty paper as it is.
  public func framed() -> GrayImage {
    let inked = image.values.indices.filter { image.values[$0] > 0.05 }
    let columns = inked.map { $0 % size }
    guard let first = inked.first, let last = inked.last, let left = columns.min(), let right = columns.max() else {
      return image
    }
    let top = first / size
    let height = last / size - top + 1, width = right - left + 1
    let side = max(height, width)
    var result = GrayImage(height: side, width: side)
    for y in 0..<height {
      for x in 0..<width {
        let at = (y + (side - height) / 2) * side + x + (side - width) / 2
        result.values[at] = image.values[(top + y) * size + left + x]
      }
    }
    return result
  }
}
