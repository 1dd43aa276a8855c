import Foundation

/// A rectangle over the upright picture, in shares of its width and height; it may reach beyond 0…1.
public struct Area: Equatable, Sendable {
  public let left: Double
  public let top: Double
  public let right: Double
  public let bottom: Double

  public var size: Double { max(0, right - left) * max(0, bottom - top) }

  public init(left: Double, top: Double, right: Double, bottom: Double) {
    self.left = left
    self.top = top
    self.right = right
    self.bottom = bottom
  }

  /// The share of both together that lies in both.
  public func overlap(_ other: Area) -> Double {
    let both = Area(
      left: max(left, other.left), top: max(top, other.top), right: min(right, other.right),
      bottom: min(bottom, other.bottom))
    let together: Double = size + other.size - both.size
    return together > 0 ? both.size / together : 0
  }
}

/// A thing in the picture: where, what, and how sure.
public struct Box: Equatable, Sendable {
  public let area: Area
  public let index: Int
  public let label: String
  public let confidence: Float
}

/// What a program says of a picture.
public enum Reading: Equatable, Sendable {
  /// Its class.
  case classes(Answer)
  /// The things in it, the surest first.
  case boxes([Box])
  /// The class of each cell of `rows` x `columns`, row by row, which cover `area`.
  case regions(rows: Int, columns: Int, classes: [Int], area: Area)

  /// Below this a thing is left out.
  public static let confidence: Float = 0.25
  /// Of two things of a class that overlap by more, the less sure one is left out.
  public static let overlap = 0.45

  /// Reads the first output by its shape, for a picture at `place` over an input of `rows` x `columns`.
  ///
  /// (N, classes): scores. (N, classes, height, width): scores of each cell; one class is there above 0.
  /// (N, 4 + labels, things): middle x and y, width and height in pixels of the input, then a share per class, as
  /// YOLO's heads give. (N, things, 6): left, top, right and bottom in these pixels, share, class, as heads give that
  /// choose among the things themselves.
  public init(
    output: [Float], spec: TensorSpec, labels: [String], place: Placement, rows: Int, columns: Int
  ) throws {
    let shape = spec.shape
    let count = shape.dropFirst().reduce(1, *)
    guard spec.dtype == "float32", output.count >= count else {
      throw ModelError("output \(spec): \(output.count) values are no scores of a picture in float32")
    }
    if shape.count == 2 {
      self = .classes(try Answer(output: output, spec: spec, labels: labels))
    } else if shape.count == 4, count > 0 {
      let area = place.area(left: 0, top: 0, right: Double(columns), bottom: Double(rows))
      let classes = Reading.cells(output, shape[1], shape[2] * shape[3])
      self = .regions(rows: shape[2], columns: shape[3], classes: classes, area: area)
    } else if shape.count == 3, !labels.isEmpty, shape[1] == 4 + labels.count {
      self = .boxes(Reading.chosen(Reading.centered(output, shape[2], labels, place)))
    } else if shape.count == 3, shape[2] == 6 {
      self = .boxes(Reading.cornered(output, shape[1], labels, place))
    } else {
      throw ModelError("output \(spec): this screen shows classes, regions and boxes")
    }
  }

  private static func cells(_ output: [Float], _ classes: Int, _ cells: Int) -> [Int] {
    (0..<cells).map { cell in
      if classes == 1 { return output[cell] > 0 ? 1 : 0 }
      var best = 0
      for c in 1..<classes where output[c * cells + cell] > output[best * cells + cell] { best = c }
      return best
    }
  }

  private static func centered(_ output: [Float], _ count: Int, _ labels: [String], _ place: Placement) -> [Box] {
    var boxes: [Box] = []
    for i in 0..<count {
      var best = 0
      for c in labels.indices where output[(4 + c) * count + i] > output[(4 + best) * count + i] { best = c }
      let sure = output[(4 + best) * count + i]
      if sure < confidence { continue }
      let x = Double(output[i]), y = Double(output[count + i])
      let wide = Double(output[2 * count + i]) / 2, tall = Double(output[3 * count + i]) / 2
      let area = place.area(left: x - wide, top: y - tall, right: x + wide, bottom: y + tall)
      boxes.append(Box(area: area, index: best, label: labels[best], confidence: sure))
    }
    return boxes
  }

  private static func cornered(_ output: [Float], _ count: Int, _ labels: [String], _ place: Placement) -> [Box] {
    var boxes: [Box] = []
    for i in 0..<count where output[i * 6 + 4] >= confidence {
      let thing = output[i * 6..<i * 6 + 6].map { Double($0) }
      let area = place.area(left: thing[0], top: thing[1], right: thing[2], bottom: thing[3])
      let index = Int(exactly: thing[5].rounded()) ?? -1
      let label = labels.indices.contains(index) ? labels[index] : String(index)
      boxes.append(Box(area: area, index: index, label: label, confidence: output[i * 6 + 4]))
    }
    return boxes.sorted { $0.confidence > $1.confidence }
  }

  /// The surest first, each but those that a surer one of their class covers.
  private static func chosen(_ boxes: [Box]) -> [Box] {
    var kept: [Box] = []
    for box in boxes.sorted(by: { $0.confidence > $1.confidence }) {
      let isCovered = kept.contains { $0.index == box.index && $0.area.overlap(box.area) > overlap }
      if !isCovered { kept.append(box) }
    }
    return kept
  }
}
